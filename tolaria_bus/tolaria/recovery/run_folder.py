"""A run's folder: its journal, what the journal says, and its checkpoints, opened together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tolaria_bus.leyline import CommandStatus, JournalRecord
from tolaria_bus.tolaria.recovery.checkpoint_info import parse_name
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointInfo, CheckpointStore
from tolaria_bus.tolaria.recovery.journal import Journal
from tolaria_bus.tolaria.recovery.ledger import CommandLedger
from tolaria_bus.tolaria.recovery.timeline import EFFECTS, LivePath

_SAVED_KEPT = 64
"""Newest checkpoints that the journal's notes of are at hand; more lie on no disk by default."""


@dataclass
class RunFolder:
    """Everything that a run keeps on disk. One process at a time: the journal holds the lock.

    Attributes:
        path: The folder.
        journal: Open for appending.
        ledger: What became of every command, by id.
        live: Which records lie on the live timeline.
        checkpoints: The store under ``checkpoints/``.
        last_effect: Sequence of the newest record that changes a run; the others are notes.
        unended: The newest process that worked on the run has not (yet) ended in good order.
        newest_answer: The newest RESULT or DEFERRED record, ``None`` if the run was stopped since.
    """

    path: Path
    journal: Journal
    ledger: CommandLedger
    live: LivePath
    checkpoints: CheckpointStore
    last_effect: int = 0
    unended: bool = False
    newest_answer: JournalRecord | None = None
    _saved: deque[tuple[str, int]] = field(default_factory=lambda: deque(maxlen=_SAVED_KEPT))
    _cuts: list[JournalRecord] = field(default_factory=list)
    _told: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        keep: int = 5,
        max_gb: float | None = None,
        on_event: Callable[[str, dict[str, str]], None] | None = None,
    ) -> RunFolder:
        """Open or make a run's folder and read its journal.

        Args:
            path: The folder; made if it isn't there.
            keep: Checkpoints that retention keeps.
            max_gb: All together; the oldest go beyond that, never the newest.
            on_event: Told of checkpoints that are set aside, and of a torn tail cut off.

        Raises:
            RunLocked: Another process works on this run.
            JournalCorrupt: The journal is damaged before its tail.
            OSError: The folder can't be made or written.
        """
        path.mkdir(parents=True, exist_ok=True)
        journal = Journal.open(path)
        folder = cls(
            path=path,
            journal=journal,
            ledger=CommandLedger(),
            live=LivePath(),
            checkpoints=CheckpointStore(
                path / "checkpoints",
                keep=keep,
                max_bytes=None if max_gb is None else int(max_gb * 1e9),
                on_event=on_event,
            ),
        )
        try:
            for record in journal.records():
                folder._note(record)
        except BaseException:
            journal.close()
            raise
        if journal.repaired is not None and on_event is not None:
            repair = journal.repaired
            on_event(
                "journal_repaired",
                {"segment": repair.segment, "cut_bytes": str(repair.cut_bytes)},
            )
        return folder

    @property
    def is_new(self) -> bool:
        """Nothing was ever written here."""
        return self.journal.last_sequence == 0

    def write(self, *records: JournalRecord) -> None:
        """Append records in one durable write and take note of them.

        Raises:
            JournalUnwritable: None of them was written.
        """
        self.journal.append(*records)
        for record in records:
            self._note(record)

    def live_checkpoints(self) -> list[CheckpointInfo]:
        """Checkpoints on the live timeline, oldest first."""
        return [
            item for item in self.checkpoints.list() if self.live.is_live(item.sequence, item.step)
        ]

    def live_after(self, sequence: int) -> list[JournalRecord]:
        """Live records after a checkpoint's sequence, in order: what recovery applies again.

        A STOP that ended a process in good order is left out: whoever starts the run again wants
        it to go on.
        """
        records = list(self.journal.records())
        stopped = max((item.sequence for item in records if item.HasField("stopped")), default=0)
        return [
            item
            for item in records
            if item.sequence > sequence
            and self.live.is_live(item.sequence)
            and item.WhichOneof("record") in EFFECTS
            and not (self.ledger.is_stop(item) and item.sequence < stopped)
        ]

    def newest_saved(self) -> tuple[str, int] | None:
        """The newest live checkpoint by the journal's word, and when it was written; no disk."""
        for name, written_at_ns in reversed(self._saved):
            step, _, sequence = parse_name(name)
            if self.live.is_live(sequence, step):
                return name, written_at_ns
        return None

    def cuts(self) -> list[JournalRecord]:
        """Every rollback of the run, live or not, oldest first."""
        return list(self._cuts)

    def untold(self, cut: JournalRecord) -> list[str]:
        """Commands that a rollback undid, without those whose ROLLED_BACK outcome is journaled.

        Args:
            cut: The rollback's record.
        """
        undone = self.ledger.rolled_back(cut.cut)
        return [name for name in undone if (name, cut.timeline) not in self._told]

    def close(self) -> None:
        """Close the journal and give up its lock."""
        self.journal.close()

    def _note(self, record: JournalRecord) -> None:
        self.ledger.note(record)
        self.live.note(record)
        if record.WhichOneof("record") in EFFECTS:
            self.last_effect = record.sequence
        if record.HasField("started") or record.HasField("stopped"):
            self.unended = record.HasField("started")
        if record.HasField("result") or record.HasField("deferred"):
            self.newest_answer = record
        elif record.HasField("stopped"):
            self.newest_answer = None
        if record.HasField("checkpoint"):
            self._saved.append((record.checkpoint.name, record.written_at_ns))
        if record.HasField("cut"):
            self._cuts.append(record)
        outcome = record.result.outcome
        if outcome.status == CommandStatus.COMMAND_STATUS_ROLLED_BACK:
            self._told.add((outcome.command_id, outcome.timeline))
