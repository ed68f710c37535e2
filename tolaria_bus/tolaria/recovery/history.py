"""What happened to a run, out of its journal: one entry for each thing that a person would tell.

Attempts, put-off commands that were finished since, and the two records of one command are one
thing to a person; a process that died has left no record, and is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandOutcome,
    CommandStatus,
    Decision,
    JournalRecord,
    RunStarted,
    TimelineCut,
)
from tolaria_bus.tolaria.recovery.journal_view import JournalView
from tolaria_bus.tolaria.recovery.ledger import CommandLedger

Told = RunStarted | CommandOutcome | TimelineCut | Decision | None


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened to a run.

    Attributes:
        kind: ``started``, ``resumed``, ``died``, ``stopped``, ``command``, ``unfinished``,
            ``waiting``, ``unended``, ``rollback``, ``decision`` or ``checkpoint``.
        at_ns: Wall clock; of a process that died: when it last wrote.
        timeline: On which timeline.
        step: The fence.
        epoch: Likewise.
        undone: A later rollback undid it.
        told: The record's own message, where it says more.
        command: What was asked for, where the journal has it.
        name: Of a checkpoint; of a stop, why; of what waits, its fence; of a run that has no end,
            the id of the process that works on it, if there is one on this machine.
        commands: Ids of the commands that a rollback undid.
        again: Steps that a resumed process does a second time.
        changed: What it found otherwise than the one before: name, then value.
        planned_before: How long the run was to be before it: steps, epochs. 0, 0: as long.
    """

    kind: str
    at_ns: int
    timeline: int
    step: int
    epoch: int
    undone: bool = False
    told: Told = None
    command: AdaptationCommand | None = None
    name: str = ""
    commands: tuple[str, ...] = field(default=())
    again: int = 0
    changed: tuple[tuple[str, str], ...] = ()
    planned_before: tuple[int, int] = (0, 0)


def history(view: JournalView) -> list[Happening]:
    """What happened, oldest first; what waits or isn't finished comes last."""
    return list(_Teller(view).tell())


class _Teller:
    def __init__(self, view: JournalView) -> None:
        self._view = view
        self._ledger = CommandLedger(view.records)
        self._asked: dict[str, AdaptationCommand] = {}
        self._running = False
        self._reached = 0
        self._environment: dict[str, str] = {}
        self._planned = (0, 0)
        self._last: JournalRecord | None = None

    def tell(self) -> Iterator[Happening]:
        for record in self._view.records:
            yield from self._of(record)
            self._last = record
        last = self._last
        if last is None:
            return
        for intent in self._ledger.unfinished():
            command = AdaptationCommand.FromString(intent.command)
            yield _happening("unfinished", last, command=command)
        for waiting in self._ledger.deferred():
            fence = f"epoch {waiting.at_epoch}" if waiting.at_epoch else f"step {waiting.at_step}"
            command = AdaptationCommand.FromString(waiting.command)
            yield _happening("waiting", last, command=command, name=fence)
        if self._running:
            holder = self._view.holder
            yield _happening("unended", last, name="" if holder is None else str(holder))

    def _of(self, record: JournalRecord) -> Iterator[Happening]:
        kind = record.WhichOneof("record")
        undone = record.sequence in self._view.undone
        if kind == "started":
            yield from self._started(record, undone=undone)
        elif kind == "stopped":
            self._running = False
            yield _happening("stopped", record, undone=undone, name=record.stopped.stopped_by)
        elif kind in {"intent", "deferred"}:
            asked = record.intent if kind == "intent" else record.deferred
            self._asked[asked.command_id] = AdaptationCommand.FromString(asked.command)
        elif kind == "result":
            outcome = record.result.outcome
            if outcome.status == CommandStatus.COMMAND_STATUS_ROLLED_BACK:
                return  # The rollback names it.
            command = self._asked.get(record.result.command_id)
            yield _happening("command", record, undone=undone, told=outcome, command=command)
        elif kind == "cut":
            self._reached = record.cut.target_step
            ids = tuple(self._ledger.rolled_back(record.cut))
            yield _happening("rollback", record, undone=undone, told=record.cut, commands=ids)
        elif kind == "decision":
            yield _happening("decision", record, undone=undone, told=record.decision)
        elif kind == "checkpoint":
            yield _happening("checkpoint", record, undone=undone, name=record.checkpoint.name)
        self._reached = max(self._reached, record.step)

    def _started(self, record: JournalRecord, *, undone: bool) -> Iterator[Happening]:
        if self._running and self._last is not None:
            yield _happening("died", self._last)
        again = max(0, self._reached - record.step)
        kind = "started" if self._last is None else "resumed"
        self._running = True
        now = dict(record.started.environment)
        changed = tuple(sorted(now.items() - self._environment.items()))
        self._environment = now
        before = self._planned
        self._planned = record.started.planned_steps, record.started.planned_epochs
        yield _happening(
            kind,
            record,
            undone=undone,
            told=record.started,
            again=again,
            changed=changed,
            planned_before=before if before != self._planned else (0, 0),
        )


def _happening(kind: str, record: JournalRecord, **told: object) -> Happening:
    return Happening(
        kind=kind,
        at_ns=record.written_at_ns,
        timeline=record.timeline,
        step=record.step,
        epoch=record.epoch,
        **told,  # type: ignore[arg-type]
    )
