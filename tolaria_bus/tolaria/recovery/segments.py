"""How journal records lie in their files, and what a damaged file means.

A run's journal is a row of segments, ``journal-000001.log`` and on. A segment is nothing but
frames, one per record, little-endian:

====== =========================================================================
bytes  what
====== =========================================================================
4      the magic ``TJR1``
4      CRC32C over the length field and the payload
4      length of the payload; the top bit is set on every frame of an append but
       its first
n      the payload: a ``JournalRecord``, serialised deterministically
====== =========================================================================

A process or machine that dies while it appends leaves a torn tail: frames that were never
acknowledged. Damage before that is another matter, since records that were acknowledged are gone.
The top bit tells the two apart: an append begins only after the one before it is durable, so a
sound frame *that begins an append* behind a bad one means that acknowledged records are damaged.
Sound frames of the torn append itself (disks write in any order) mean nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
from google.protobuf.message import DecodeError

from tolaria_bus.leyline import JournalRecord

MAGIC = b"TJR1"
MAX_RECORD_BYTES = 16 << 20
"""Sixteen times the largest command; more is a mistake, and a length beyond it is damage."""

_HEAD = struct.Struct("<4sII")
_LENGTH = struct.Struct("<I")
_CONTINUES = 1 << 31
_NAME = re.compile(r"journal-(\d{6,})\.log")


class JournalCorrupt(RuntimeError):
    """Records that had been acknowledged are damaged or missing. One line says where.

    Attributes:
        segment: Name of the file.
        offset: Where in it, in bytes.
    """

    def __init__(self, segment: str, offset: int, detail: str) -> None:
        super().__init__(f"journal is damaged: {segment} at byte {offset}: {detail}")
        self.segment = segment
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Frame:
    """One sound frame: its payload, where the next one begins, and whether it begins an append."""

    payload: bytes
    end: int
    begins_append: bool


def segment_path(folder: Path, number: int) -> Path:
    """The file of segment ``number``, counted from 1."""
    return folder / f"journal-{number:06d}.log"


def segments(folder: Path) -> list[Path]:
    """The journal's files in order.

    Raises:
        JournalCorrupt: One is missing in between.
        OSError: The folder can't be read.
    """
    found = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) is not None
    }
    for number in range(1, max(found, default=0) + 1):
        if number not in found:
            raise JournalCorrupt(segment_path(folder, number).name, 0, "the file is missing")
    return [found[number] for number in sorted(found)]


def frame(payload: bytes, *, begins_append: bool) -> bytes:
    """A record's bytes as they go to disk.

    Raises:
        ValueError: The payload is longer than :data:`MAX_RECORD_BYTES`.
    """
    if len(payload) > MAX_RECORD_BYTES:
        raise ValueError(
            f"a journal record of {len(payload)} bytes: at most {MAX_RECORD_BYTES} are allowed"
        )
    counted = _LENGTH.pack(len(payload) | (0 if begins_append else _CONTINUES)) + payload
    return MAGIC + _LENGTH.pack(google_crc32c.value(counted)) + counted


def frame_at(data: bytes, offset: int) -> Frame | None:
    """The frame that begins at ``offset``, or ``None`` if what is there isn't a sound one."""
    if len(data) - offset < _HEAD.size:
        return None
    magic, crc, length = _HEAD.unpack_from(data, offset)
    begin = offset + _HEAD.size
    end = begin + (length & ~_CONTINUES)
    if magic != MAGIC or end > len(data) or end - begin > MAX_RECORD_BYTES:
        return None
    if google_crc32c.value(data[begin - _LENGTH.size : end]) != crc:
        return None
    return Frame(data[begin:end], end, not length & _CONTINUES)


def read_segment(
    path: Path, sequence: int, *, newest: bool, limit: int | None = None
) -> Iterator[tuple[JournalRecord, int]]:
    """The records of one segment, each with the offset at which it ends.

    Args:
        path: The file.
        sequence: Of the record before its first, 0 for none.
        newest: A bad tail is allowed, and ends the reading, in the newest segment only.
        limit: Read only so many bytes.

    Raises:
        JournalCorrupt: Something else than the tail is damaged.
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        data = file.read() if limit is None else file.read(limit)
    offset = 0
    while offset < len(data):
        found = frame_at(data, offset)
        if found is None:
            _check_tail(path, data, offset, newest=newest)
            return
        try:
            record = JournalRecord.FromString(found.payload)
        except DecodeError:
            raise JournalCorrupt(path.name, offset, "not a journal record") from None
        sequence += 1
        if record.sequence != sequence:
            raise JournalCorrupt(
                path.name, offset, f"record {record.sequence} where {sequence} belongs"
            )
        offset = found.end
        yield record, offset


def _check_tail(path: Path, data: bytes, offset: int, *, newest: bool) -> None:
    if not newest:
        raise JournalCorrupt(path.name, offset, "no sound record here")
    head = data[offset : offset + len(MAGIC)]
    if len(head) == len(MAGIC) and head[:3] == MAGIC[:3] and head != MAGIC and head[3:].isdigit():
        raise JournalCorrupt(path.name, offset, f"written by a newer version ({head.decode()})")
    at = data.find(MAGIC, offset + 1)
    while at >= 0:
        later = frame_at(data, at)
        if later is not None and later.begins_append:
            raise JournalCorrupt(path.name, offset, f"no sound record, but one follows at {at}")
        at = data.find(MAGIC, at + 1 if later is None else later.end)
