"""The bulk of a checkpoint's way to disk: copied in pieces, summed, made durable.

Needs no torch, so that a process which does only this starts in no time and takes no memory
(:mod:`.disk_process`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import google_crc32c

PIECE_BYTES = 1 << 20
"""How much is copied, summed and written at a time: it stays in a cache."""

SYNC_BYTES = 64 << 20
"""Written between two syncs, so that a sync of something else waits for no more than this."""

Read = Callable[[int, int], bytes]
"""Gives the bytes of a stretch from here on: at an offset, so many at most."""


def write_stretches(
    fd: int,
    head: bytes,
    stretches: Iterable[tuple[Read, int]],
    progress: Callable[[], None] = lambda: None,
) -> list[int]:
    """Write a file from its beginning and make its contents durable.

    Args:
        fd: The file; what was in it is gone.
        head: Its first bytes.
        stretches: What follows: how each is read, and its length.
        progress: Called now and then.

    Returns:
        The CRC32C of each stretch.

    Raises:
        OSError: Disk full, for one.
    """
    os.ftruncate(fd, 0)
    end = _write(fd, head, 0)
    synced = 0
    sums = []
    for read, size in stretches:
        crc = 0
        for offset in range(0, size, PIECE_BYTES):
            piece = read(offset, min(PIECE_BYTES, size - offset))
            crc = google_crc32c.extend(crc, piece)
            end = _write(fd, piece, end)
            if end - synced >= SYNC_BYTES:
                os.fdatasync(fd)
                synced = end
                progress()
        sums.append(crc)
    os.fsync(fd)
    return sums


def sum_stretches(
    fd: int, sizes: Iterable[int], progress: Callable[[], None] = lambda: None
) -> list[int]:
    """The CRC32C of each of the stretches that a file begins with.

    Args:
        fd: The file.
        sizes: Their lengths, in order.
        progress: Called now and then.

    Raises:
        EOFError: The file ends too early.
        OSError: It can't be read.
    """
    sums = []
    begin = told = 0
    for size in sizes:
        crc = 0
        end = begin + size
        while begin < end:
            piece = os.pread(fd, min(PIECE_BYTES, end - begin), begin)
            if not piece:
                raise EOFError("the file ends too early")
            crc = google_crc32c.extend(crc, piece)
            begin += len(piece)
            if begin - told >= SYNC_BYTES:
                told = begin
                progress()
        sums.append(crc)
    return sums


def _write(fd: int, data: bytes, offset: int) -> int:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written
    return offset
