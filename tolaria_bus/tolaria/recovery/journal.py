"""The write-ahead log of a run: what is in it has happened, whatever dies next.

:meth:`Journal.append` returns when its records are on stable storage (``O_DSYNC``); it costs one
``write`` for all of them, a fraction of a millisecond on a solid-state disk. A failed append
leaves no trace: the file is cut back to where it was, and the journal can be used again when there
is space.

Space for a while is held behind the end of the file. On a full disk that is kept for what the
trainer decides and for what was begun: a new command is refused, the RESULT of one that was let in
is not.

One process at a time has a journal open, by the lock in its folder; anybody may read one
with :func:`read_records`.

How records lie in the files, and how a torn tail is told from damage: :mod:`.segments`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tolaria_bus.leyline import JournalRecord
from tolaria_bus.tolaria.recovery.reserve import reserve
from tolaria_bus.tolaria.recovery.run_lock import RunLock, RunLocked
from tolaria_bus.tolaria.recovery.segments import (
    JournalCorrupt,
    frame,
    read_segment,
    segment_path,
    segments,
)

__all__ = [
    "Journal",
    "JournalCorrupt",
    "JournalUnwritable",
    "Repair",
    "RunLocked",
    "read_records",
]

SEGMENT_BYTES = 100_000_000
"""A new segment is begun before one would grow beyond this."""

RESERVE_BYTES = 1 << 20
"""So much space at least is held for what may use it, and up to twice as much."""

_MAY_NOT_USE_IT = frozenset({"intent", "deferred", "checkpoint"})
"""Records that begin something new, or are notes that can be done without."""


class JournalUnwritable(RuntimeError):
    """Records could not be made durable, and none of them is in the journal. One line says why."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A torn tail that was cut off when the journal was opened.

    Attributes:
        segment: Name of the file.
        offset: Its length now, in bytes.
        cut_bytes: What was cut off; no append that was acknowledged is among it.
        kept_as: Name of the file that the cut bytes were copied to, ``None`` if that failed.
    """

    segment: str
    offset: int
    cut_bytes: int
    kept_as: str | None


class Journal:
    """The journal of one run, open for appending. Made by :meth:`open`; safe for any thread.

    Attributes:
        folder: Where its segments and its lock are.
        last_sequence: Of the newest record, 0 before the first.
        repaired: What opening it had to cut off, ``None`` in the ordinary case.
    """

    def __init__(
        self, folder: Path, lock: RunLock, clock_ns: Callable[[], int], segment_bytes: int
    ) -> None:
        self.folder = folder
        self.last_sequence = 0
        self.repaired: Repair | None = None
        self._lock = lock
        self._clock_ns = clock_ns
        self._segment_bytes = segment_bytes
        self._appending = threading.Lock()
        self._number = 0
        self._fd = -1
        self._end = 0
        self._held = 0  # Space is held up to this offset.
        self._broken = ""

    @classmethod
    def open(
        cls,
        folder: Path,
        clock_ns: Callable[[], int] = time.time_ns,
        *,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Journal:
        """Open the journal in ``folder``, made if it isn't there, and check every record of it.

        Args:
            folder: Usually the run's folder.
            clock_ns: Wall clock in nanoseconds, for ``written_at_ns``.
            segment_bytes: Size from which a new file is begun.

        Raises:
            RunLocked: Another process has it open.
            JournalCorrupt: It is damaged before its tail.
            OSError: The folder or its files can't be made or read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        journal = cls(folder, lock, clock_ns, segment_bytes)
        try:
            journal._find_end()
        except BaseException:
            journal.close()
            raise
        return journal

    def append(self, *records: JournalRecord) -> tuple[int, ...]:
        """Make records durable, all in one write, and return their sequences.

        Args:
            records: ``sequence`` and ``written_at_ns`` of each are set.

        Raises:
            JournalUnwritable: Disk full, an I/O error, or the journal is closed. None of the
                records counts; the next append may succeed.
            ValueError: A record is over the size limit; nothing was written.
        """
        with self._appending:
            if not records:
                return ()
            now = self._clock_ns()
            parts = []
            for place, record in enumerate(records):
                record.sequence = self.last_sequence + 1 + place
                record.written_at_ns = now
                payload = record.SerializeToString(deterministic=True)
                parts.append(frame(payload, begins_append=place == 0))
            data = b"".join(parts)
            begun = all(item.WhichOneof("record") not in _MAY_NOT_USE_IT for item in records)
            self._write(data, may_use_reserve=begun)
            self._end += len(data)
            self.last_sequence += len(records)
            return tuple(record.sequence for record in records)

    def records(self) -> Iterator[JournalRecord]:
        """Every record, oldest first, read from disk.

        Raises:
            JournalCorrupt: The files were damaged since they were opened.
            OSError: They can't be read.
        """
        with self._appending:
            newest, end, last = self._number, self._end, self.last_sequence
        sequence = 0
        for number, path in enumerate(segments(self.folder)[:newest], start=1):
            limit = end if number == newest else None
            for record, _ in read_segment(path, sequence, newest=False, limit=limit):
                sequence = record.sequence
                yield record
        if sequence != last:
            name = segment_path(self.folder, newest).name
            raise JournalCorrupt(name, end, f"ends with record {sequence}, must be {last}")

    def close(self) -> None:
        """Close the file and give up the lock; doing so twice is fine."""
        with self._appending:
            self._broken = self._broken or "it is closed"
            self._close_segment()
            self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _find_end(self) -> None:
        paths = segments(self.folder)
        for number, path in enumerate(paths, start=1):
            self._number, self._end = number, 0
            for record, end in read_segment(path, self.last_sequence, newest=number == len(paths)):
                self.last_sequence, self._end = record.sequence, end
        if not paths:
            self._begin_segment()
            return
        self._fd = _open_segment(paths[-1])
        size = os.fstat(self._fd).st_size
        if size > self._end:
            self.repaired = Repair(
                segment=paths[-1].name,
                offset=self._end,
                cut_bytes=size - self._end,
                kept_as=_keep_tail(paths[-1], self._end),
            )
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
        with suppress(OSError):  # It can be read all the same; the first append says what is wrong.
            self._hold(0)

    def _write(self, data: bytes, *, may_use_reserve: bool) -> None:
        if self._broken or not self._lock.held:
            why = self._broken or "this is not the process that opened it"
            raise JournalUnwritable(f"{self.folder}: {why}")
        try:
            if self._end and self._end + len(data) > self._segment_bytes:
                self._begin_segment()
        except OSError as error:
            if not (may_use_reserve and error.errno == errno.ENOSPC):
                why = f"no new segment: {error.strerror}"
                raise JournalUnwritable(f"{self.folder}: {why}") from error
        try:
            self._hold(len(data))
        except OSError as error:
            if not may_use_reserve:
                name = segment_path(self.folder, self._number).name
                raise JournalUnwritable(f"{self.folder / name}: {error.strerror}") from error
        try:
            rest = memoryview(data)
            while rest:
                # Comes back short only where the next one says why: disk full, file too large.
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._cut_back()
            name = segment_path(self.folder, self._number).name
            raise JournalUnwritable(f"{self.folder / name}: {error.strerror}") from error

    def _hold(self, size: int) -> None:
        """Have space for ``size`` bytes and the reserve behind. Raises OSError: there is none."""
        needed = self._end + size + RESERVE_BYTES
        if needed > self._held:
            begin = max(self._held, self._end)
            reserve(self._fd, begin, needed + RESERVE_BYTES - begin)
            self._held = needed + RESERVE_BYTES

    def _cut_back(self) -> None:
        # Durably, or records that were refused could come back after a power cut.
        self._held = 0  # A file system may let go of what was behind the end.
        try:
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
        except OSError as error:
            self._broken = f"a failed append could not be taken back: {error.strerror}"

    def _begin_segment(self) -> None:
        path = segment_path(self.folder, self._number + 1)
        fd = _open_segment(path)
        try:
            reserve(fd, 0, 2 * RESERVE_BYTES)
            sync_folder(self.folder)
        except BaseException:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.ftruncate(self._fd, self._end)  # What was held behind it is free again.
        self._close_segment()
        self._fd, self._number, self._end = fd, self._number + 1, 0
        self._held = 2 * RESERVE_BYTES

    def _close_segment(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def read_records(folder: Path) -> Iterator[JournalRecord]:
    """Every durable record of the journal in ``folder``, oldest first, without taking its lock.

    A tail that is torn, or being written at this moment, is left out.

    Raises:
        JournalCorrupt: It is damaged before its tail.
        OSError: It can't be read, or the folder isn't there.
    """
    paths = segments(folder)
    sequence = 0
    for number, path in enumerate(paths, start=1):
        for record, _ in read_segment(path, sequence, newest=number == len(paths)):
            sequence = record.sequence
            yield record


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: The folder can't be opened or synced.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_segment(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC | os.O_CLOEXEC
    return os.open(path, flags, 0o644)


def _keep_tail(path: Path, offset: int) -> str | None:
    # For people who want to know what was lost. Not worth failing for: a torn tail often comes
    # from a full disk.
    kept = path.with_name(f"{path.name}.torn-{offset}")
    try:
        with path.open("rb") as file:
            file.seek(offset)
            kept.write_bytes(file.read())
    except OSError:
        return None
    return kept.name
