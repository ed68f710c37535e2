"""One file of the spool: frames in a preallocated file, mapped into memory.

Not thread-safe: the spool holds its lock around every call but ``sync`` and ``recycle``.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import google_crc32c

HEADER: Final = struct.Struct("<4sIQIIB7x")
"""magic, length of the record, number, CRC32C of the record, CRC32C of the header, state."""

_MAGIC: Final = b"TSP1"
_CHECKED: Final = struct.Struct("<Q4sIQI")
_STATE_AT: Final = 24
_LIVE: Final = 0
_DROPPED: Final = 0xD0
_CHUNK: Final = 256 << 10


def frame_size(length: int) -> int:
    """Bytes that a record of ``length`` bytes takes in a segment."""
    return HEADER.size + (length + 7 & ~7)


@dataclass
class Scan:
    """What a segment of an earlier process holds.

    Attributes:
        records: (number, offset, length) of each one not dropped, in order.
        last_number: The highest number seen, of dropped ones too; 0 for none.
        damaged: Places where bytes were that are no whole frame.
    """

    records: list[tuple[int, int, int]] = field(default_factory=list)
    last_number: int = 0
    damaged: int = 0


class Segment:
    """A mapped file.

    Attributes:
        path: Where it is.
        size: Its bytes.
        end: Where the next frame goes.
        live: Records not dropped.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self.end = 0
        self.live = 0
        self._number = 0
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, size)

    @classmethod
    def create(cls, path: Path, size: int) -> Self:
        """Make a file of zeros whose blocks are all allocated, so that no write to it can fail.

        Raises:
            OSError: the disk is full, or the file exists.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            segment = cls(path, descriptor, size)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        segment._clear()
        return segment

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file that is there."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(path, descriptor, os.fstat(descriptor).st_size)
        except BaseException:
            os.close(descriptor)
            raise

    def begin(self, number: int) -> None:
        """From here on this is segment ``number``, empty."""
        self._number, self.end, self.live = number, 0, 0

    def append(self, number: int, record: bytes) -> int:
        """Write a frame at the end, for which there must be room; its record's offset."""
        offset = self.end
        start = offset + HEADER.size
        record_crc = google_crc32c.value(record)
        header_crc = self._header_crc(len(record), number, record_crc)
        self._map[start : start + len(record)] = record
        # Last, so that a frame with a header is a frame with its record.
        self._map[offset:start] = HEADER.pack(
            _MAGIC, len(record), number, record_crc, header_crc, _LIVE
        )
        self.end += frame_size(len(record))
        self.live += 1
        return offset

    def read(self, offset: int, length: int) -> bytes:
        """The record whose frame begins at ``offset``."""
        start = offset + HEADER.size
        return self._map[start : start + length]

    def drop(self, offset: int) -> None:
        """Mark the frame at ``offset`` as done."""
        self._map[offset + _STATE_AT] = _DROPPED
        self.live -= 1

    def scan(self, number: int) -> Scan:
        """Find the frames of segment ``number``; afterwards ``live`` counts its records."""
        self._number = number
        scan = Scan()
        position = 0
        while (found := self._next_frame(position, scan.last_number)) is not None:
            offset, record_number, length, record_crc = found
            # Zeros between two frames are damage as well: a page that never reached the disk.
            scan.damaged += offset != position
            position = offset + frame_size(length)
            scan.last_number = record_number
            if self._map[offset + _STATE_AT] == _DROPPED:
                continue
            if google_crc32c.value(self.read(offset, length)) == record_crc:
                scan.records.append((record_number, offset, length))
            else:
                scan.damaged += 1
        # A torn end: bytes in the place of a header.
        scan.damaged += any(self._map[position : position + HEADER.size])
        self.end = position
        self.live = len(scan.records)
        return scan

    def sync(self) -> None:
        """Flush the map and the file's size to the disk. Raises OSError."""
        # fsync and not msync: Python's mmap.flush() holds the interpreter's lock.
        os.fsync(self._descriptor)

    def recycle(self, path: Path) -> Self:
        """Move to ``path`` and become empty again, keeping the blocks."""
        self.rename(path)
        self._clear()
        return self

    def rename(self, path: Path) -> None:
        """Move the file, replacing what is there."""
        self.path.replace(path)
        self.path = path

    def close(self) -> None:
        """Unmap and close the file."""
        self._map.close()
        os.close(self._descriptor)

    def _clear(self) -> None:
        """Zero it all, in pieces; the pages are in memory afterwards, so appending won't fault."""
        zeros = bytes(_CHUNK)
        for start in range(0, self.size, _CHUNK):
            stop = min(start + _CHUNK, self.size)
            self._map[start:stop] = zeros[: stop - start]

    def _next_frame(self, position: int, after: int) -> tuple[int, int, int, int] | None:
        """The first whole header at or behind ``position`` with a number over ``after``."""
        while (offset := self._map.find(_MAGIC, position)) >= 0:
            header = self._header(offset, after)
            if header is not None:
                return (offset, *header)
            position = offset + 1
        return None

    def _header(self, offset: int, after: int) -> tuple[int, int, int] | None:
        """(number, length, CRC of the record), if a valid header stands at ``offset``."""
        if offset % 8 or offset + HEADER.size > self.size:
            return None
        _, length, number, record_crc, header_crc, _ = HEADER.unpack_from(self._map, offset)
        if header_crc != self._header_crc(length, number, record_crc) or number <= after:
            return None
        if offset + frame_size(length) > self.size:
            return None
        return number, length, record_crc

    def _header_crc(self, length: int, number: int, record_crc: int) -> int:
        checked = _CHECKED.pack(self._number, _MAGIC, length, number, record_crc)
        return int(google_crc32c.value(checked))
