"""Packets that must not be lost, on disk from the moment they are queued.

A folder of preallocated segment files, mapped into memory. Appending copies the record into the
map (microseconds, no system call), so it survives the death of the process at once; ``sync``
makes it survive a power cut and is the bus side's to call. A record is dropped by one byte
written in place, a segment whose records are all dropped becomes the spare for the next one: a
full disk takes neither the room that is in use nor the next segment.

A frame is a header and the record, padded to 8 bytes. The header's CRC covers the segment's
number, so that what an earlier use of the file left behind is never taken for a record; it is
written after the record, so a frame is either whole or not there. Where damage is found, the scan
goes on at the next frame that is whole: damage costs the records that it hit, no others.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Self

from tolaria_bus.oona.spool_segment import HEADER, Segment, frame_size

SEGMENT_BYTES = 4 << 20
"""Bytes of one segment file; the largest record is a little smaller. Two are on disk when idle."""

_SUFFIX = ".segment"
_SPARE = "spare"
_RETIRING = "retiring"


class SpoolError(Exception):
    """The spool can't do what was asked; the message is one line for people."""


class SpoolLocked(SpoolError):
    """Another process has the folder."""


class SpoolFull(SpoolError):
    """The record can't be stored: it is too large, the disk is full, or the spool is closed."""


class Spool:
    """A durable queue of records. Every method may be called from any thread.

    Args:
        folder: Made if it isn't there. One process at a time, kept by a lock on a file in it.
        segment_bytes: Size of a segment file.

    Attributes:
        damaged: How many damaged places were found at the start; each cost at least one record.

    Raises:
        SpoolLocked: another process has the folder.
        OSError: the folder can't be made, or a segment not be allocated.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        if segment_bytes < 4096:
            raise ValueError(f"segment_bytes = {segment_bytes}: must be at least 4096")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._index: dict[int, tuple[Segment, int, int]] = {}
        self._sealed: list[Segment] = []
        self._retired: list[Segment] = []
        self._spare: Segment | None = None
        self._next = 1
        self._closed = False
        self._unsynced = False
        self.damaged = 0
        self._lock_file = _locked(folder / "lock")
        try:
            self._open()
        except BaseException:
            os.close(self._lock_file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Records not yet dropped."""
        return len(self._index)

    @property
    def unsynced(self) -> bool:
        """Something was appended since the last ``sync`` and isn't dropped yet."""
        return self._unsynced and bool(self._index)

    def append(self, record: bytes) -> int:
        """Store a record; microseconds, unless the segment is full and no spare is ready.

        Returns:
            Its number, which rises with each record and names it for ``read`` and ``drop``.

        Raises:
            SpoolFull: the record is larger than a segment, the disk is full, the spool is closed.
        """
        size = frame_size(len(record))
        if size > self._segment_bytes:
            most = self._segment_bytes - HEADER.size
            raise SpoolFull(f"a record of {len(record)} bytes; at most {most} fit in a segment")
        with self._lock:
            if self._closed:
                raise SpoolFull("the spool is closed")
            if self._active.end + size > self._active.size:
                self._rotate()
            number = self._next
            offset = self._active.append(number, record)
            self._next += 1
            self._index[number] = (self._active, offset, len(record))
            self._unsynced = True
            return number

    def read(self, number: int) -> bytes:
        """The record.

        Raises:
            KeyError: it was dropped, or never was.
        """
        with self._lock:
            segment, offset, length = self._index[number]
            return segment.read(offset, length)

    def drop(self, number: int) -> bool:
        """Forget a record; false if it was dropped before."""
        with self._lock:
            found = self._index.pop(number, None)
            if found is None:
                return False
            segment, offset, _ = found
            segment.drop(offset)
            if segment.live == 0 and segment is not self._active:
                self._sealed.remove(segment)
                self._retired.append(segment)
            return True

    def pending(self) -> list[tuple[int, bytes]]:
        """Every record that isn't dropped, with its number, oldest first."""
        with self._lock:
            return [
                (number, segment.read(*place)) for number, (segment, *place) in self._index.items()
            ]

    def sync(self) -> None:
        """Make what was appended survive a power cut, and ready the next segment.

        Takes milliseconds: not for the training thread, nor for the event loop's. The lock that
        ``append`` takes isn't held meanwhile.

        Raises:
            OSError: the disk refuses, or is too full for a spare segment. What is in the spool
                is still there.
        """
        with self._sync_lock:
            if not self._closed:
                self._flush()
                self._tidy()

    def close(self) -> None:
        """Flush to the disk, unmap and unlock. A second call does nothing.

        Raises:
            OSError: the disk refuses the flush; the spool is closed all the same.
        """
        with self._sync_lock:
            if self._closed:
                return
            try:
                self._flush()
            finally:
                with self._lock:
                    self._closed = True
                    for segment in [*self._sealed, *self._retired, self._active, self._spare]:
                        if segment is not None:
                            segment.close()
                    os.close(self._lock_file)

    def _flush(self) -> None:
        with self._lock:
            self._unsynced = False
            used = [*self._sealed, self._active]
        try:
            for segment in used:
                segment.sync()
            _sync_folder(self._folder)
        except OSError:
            self._unsynced = True
            raise

    def _tidy(self) -> None:
        """Remove or reuse segments that hold nothing any more; see to it that there is a spare."""
        with self._lock:
            retired, self._retired = self._retired, []
            needs_spare = self._spare is None
        for segment in retired:
            if needs_spare and segment.size == self._segment_bytes:
                spare, needs_spare = segment.recycle(self._folder / _RETIRING), False
                self._put_aside(spare)
            else:
                segment.close()
                segment.path.unlink()
        if needs_spare:
            self._put_aside(Segment.create(self._folder / _RETIRING, self._segment_bytes))

    def _open(self) -> None:
        (self._folder / _RETIRING).unlink(missing_ok=True)
        spare = self._folder / _SPARE
        if spare.exists():
            if spare.stat().st_size == self._segment_bytes:
                self._spare = Segment.open(spare)
            else:
                spare.unlink()
        last = 0
        for path in sorted(self._folder.glob("*" + _SUFFIX)):
            last = max(last, int(path.stem))
            self._take_up(path)
        # A fresh segment, whatever room the last one has: nothing is written behind a torn end.
        self._number = last
        self._active = self._fresh()
        self._spare = self._spare or Segment.create(spare, self._segment_bytes)

    def _take_up(self, path: Path) -> None:
        """Index the records of a segment that an earlier process left; remove it if it has none."""
        segment = Segment.open(path)
        scan = segment.scan(int(path.stem))
        self.damaged += scan.damaged
        self._next = max(self._next, scan.last_number + 1)
        if not scan.records:
            segment.close()
            path.unlink()
            return
        for number, offset, length in scan.records:
            self._index[number] = (segment, offset, length)
        self._sealed.append(segment)

    def _rotate(self) -> None:
        """Go on in a fresh segment. Raises SpoolFull; then the old one stays the active one."""
        old = self._active
        try:
            self._active = self._fresh()
        except OSError as error:
            raise SpoolFull(f"no room for another spool segment: {error}") from error
        (self._sealed if old.live else self._retired).append(old)

    def _fresh(self) -> Segment:
        """The next segment, from the spare if there is one."""
        path = self._folder / f"{self._number + 1:010d}{_SUFFIX}"
        segment, self._spare = self._spare, None
        if segment is None:
            segment = Segment.create(path, self._segment_bytes)
        else:
            segment.rename(path)
        self._number += 1
        segment.begin(self._number)
        return segment

    def _put_aside(self, segment: Segment) -> None:
        with self._lock:
            segment.rename(self._folder / _SPARE)
            self._spare = segment


def _locked(path: Path) -> int:
    """Open and lock a file; the lock ends with the process, however that dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise SpoolLocked(f"the spool {path.parent} is in use by another process") from error
    return descriptor


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
