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
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tolaria_bus.leyline import JournalRecord
from tolaria_bus.tolaria.recovery.open_segment import OpenSegment
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

_MAY_NOT_USE_RESERVE = frozenset({"intent", "deferred", "checkpoint"})
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


class _End(NamedTuple):
    """Where a journal goes on: in which segment, after which record."""

    segment: OpenSegment
    sequence: int
    repaired: Repair | None


class Journal:
    """The journal of one run, open for appending. Made by :meth:`open`; safe for any thread.

    Attributes:
        folder: Where its segments and its lock are.
        last_sequence: Of the newest record, 0 before the first.
        repaired: What opening it had to cut off, ``None`` in the ordinary case.
    """

    def __init__(
        self,
        folder: Path,
        lock: RunLock,
        end: _End,
        clock_ns: Callable[[], int],
        segment_bytes: int,
    ) -> None:
        self.folder = folder
        self.last_sequence = end.sequence
        self.repaired = end.repaired
        self._lock = lock
        self._segment = end.segment
        self._clock_ns = clock_ns
        self._segment_bytes = segment_bytes
        self._appending = threading.Lock()
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
        try:
            end = _find_end(folder)
        except BaseException:
            lock.release()
            raise
        return cls(folder, lock, end, clock_ns, segment_bytes)

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
            begun = all(item.WhichOneof("record") not in _MAY_NOT_USE_RESERVE for item in records)
            self._write(data, may_use_reserve=begun)
            self._segment.end += len(data)
            self.last_sequence += len(records)
            return tuple(record.sequence for record in records)

    def records(self) -> Iterator[JournalRecord]:
        """Every record, oldest first, read from disk.

        Raises:
            JournalCorrupt: The files were damaged since they were opened.
            OSError: They can't be read.
        """
        with self._appending:
            newest, end, last = self._segment.number, self._segment.end, self.last_sequence
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
            self._segment.close()
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

    def _write(self, data: bytes, *, may_use_reserve: bool) -> None:
        if self._broken or not self._lock.held:
            why = self._broken or "this is not the process that opened it"
            raise JournalUnwritable(f"{self.folder}: {why}")
        try:
            end = self._segment.end
            if end and end + len(data) > self._segment_bytes:
                self._begin_segment()
        except OSError as error:
            if not (may_use_reserve and error.errno == errno.ENOSPC):
                why = f"no new segment: {error.strerror}"
                raise JournalUnwritable(f"{self.folder}: {why}") from error
        segment = self._segment
        try:
            segment.hold(len(data))
        except OSError as error:
            if not may_use_reserve:
                raise JournalUnwritable(f"{segment.path}: {error.strerror}") from error
        try:
            segment.write(data)
        except OSError as error:
            self._cut_back()
            raise JournalUnwritable(f"{segment.path}: {error.strerror}") from error

    def _cut_back(self) -> None:
        try:
            self._segment.cut_back()
        except OSError as error:
            self._broken = f"a failed append could not be taken back: {error.strerror}"

    def _begin_segment(self) -> None:
        begun = OpenSegment.begin(self.folder, self._segment.number + 1)
        self._segment.finish()
        self._segment = begun


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


def _find_end(folder: Path) -> _End:
    """Check every record, and open the newest segment; its torn tail, if there is one, is cut."""
    paths = segments(folder)
    sequence = end = 0
    for number, path in enumerate(paths, start=1):
        end = 0
        for record, ends_at in read_segment(path, sequence, newest=number == len(paths)):
            sequence, end = record.sequence, ends_at
    if not paths:
        return _End(OpenSegment.begin(folder, 1), 0, None)
    segment = OpenSegment(paths[-1], len(paths), end)
    try:
        repaired = _repair(segment)
    except BaseException:
        segment.close()
        raise
    with suppress(OSError):  # It can be read all the same; the first append says what is wrong.
        segment.hold(0)
    return _End(segment, sequence, repaired)


def _repair(segment: OpenSegment) -> Repair | None:
    """Cut a torn tail off."""
    size = segment.size
    if size <= segment.end:
        return None
    kept = _keep_tail(segment.path, segment.end)
    segment.cut_back()
    return Repair(segment.path.name, segment.end, size - segment.end, kept)


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
