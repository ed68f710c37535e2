"""A journal as it is on disk, for those who only look: its records, its tail, what is undone.

Nothing is locked, so that a run in progress can be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tolaria_bus.leyline import CommandStatus, JournalRecord
from tolaria_bus.tolaria.recovery.run_lock import LOCK_NAME
from tolaria_bus.tolaria.recovery.segments import read_segment, segments
from tolaria_bus.tolaria.recovery.timeline import EFFECTS, LivePath

_LOCKS = Path("/proc/locks")
_NOTES = frozenset({"started", "stopped", "checkpoint"})
"""What only tells of a run. A rollback undoes it where it is of a later step."""


class NothingRecorded(RuntimeError):
    """There is no journal, or nothing in it. One line."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Bytes behind the last sound record: an append that isn't finished, or was torn.

    Attributes:
        segment: Name of the file.
        offset: Where they begin.
        bytes: How many.
    """

    segment: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class JournalView:
    """What is in a run's journal.

    Attributes:
        folder: The run's folder.
        records: Oldest first.
        tail: What stands behind them, ``None`` in the ordinary case.
        undone: Sequences of the records that a rollback undid.
        holder: Process id of the worker that has the run now; ``None``: none on this machine.
    """

    folder: Path
    records: tuple[JournalRecord, ...]
    tail: Tail | None
    undone: frozenset[int]
    holder: int | None

    @classmethod
    def read(cls, folder: Path) -> JournalView:
        """Read a run's folder.

        Raises:
            NothingRecorded: There is no journal in it.
            JournalCorrupt: It is damaged before its tail.
            OSError: It can't be read.
        """
        records: list[JournalRecord] = []
        tail = None
        paths = segments(folder) if folder.is_dir() else []
        for number, path in enumerate(paths, start=1):
            # Whoever appends meanwhile goes on behind this.
            size, end = path.stat().st_size, 0
            sequence = records[-1].sequence if records else 0
            newest = number == len(paths)
            for record, offset in read_segment(path, sequence, newest=newest, limit=size):
                records.append(record)
                end = offset
            if end < size:
                tail = Tail(path.name, end, size - end)
        if not records:
            raise NothingRecorded(f"{folder}: no journal of a run in it")
        undone = frozenset(_undone(records))
        return cls(folder, tuple(records), tail, undone, holder(folder))


def holder(folder: Path) -> int | None:
    """Who holds a run's lock, as the kernel tells it; asking takes no lock.

    A process of another machine, or of another container, isn't seen.
    """
    try:
        inode = str((folder / LOCK_NAME).stat().st_ino)
        pid = (folder / LOCK_NAME).read_text().strip()
        held = _LOCKS.read_text()
    except OSError:
        return None
    for line in held.splitlines():
        words = line.split()
        # Not by the device: what a layered file system calls it differs from what stands here.
        if "FLOCK" in words and pid in words and any(word.endswith(f":{inode}") for word in words):
            return int(pid)
    return None


def _undone(records: Iterable[JournalRecord]) -> set[int]:
    records = list(records)
    path = LivePath(records)
    undone: set[int] = set()
    notes: list[JournalRecord] = []
    begun: dict[str, int] = {}
    for record in records:
        kind = record.WhichOneof("record")
        if kind in EFFECTS and not path.is_live(record.sequence):
            undone.add(record.sequence)
        if kind == "intent":
            begun[record.intent.command_id] = record.sequence
        elif kind in {"attempt", "result"} and not _tells_of_undoing(record):
            # With the command that they are of; one that was refused had nothing to undo.
            if begun.get(getattr(record, kind).command_id) in undone:
                undone.add(record.sequence)
        elif kind == "cut":
            target = record.cut.target_step
            undone.update(note.sequence for note in notes if _step(note) > target)
            notes = [note for note in notes if _step(note) <= target]
        elif kind in _NOTES:
            notes.append(record)
    return undone


def _tells_of_undoing(record: JournalRecord) -> bool:
    return record.result.outcome.status == CommandStatus.COMMAND_STATUS_ROLLED_BACK


def _step(note: JournalRecord) -> int:
    # A checkpoint is noted when it is durable, which is later than the step that it is of.
    text = note.checkpoint.name.partition("-")[2].partition("-")[0]
    return int(text) if text.isdecimal() else note.step
