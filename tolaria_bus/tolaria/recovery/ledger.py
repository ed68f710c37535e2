"""What became of every command of a run, by id: the memory that makes an effect happen once.

It is built from the whole journal, dead timelines included, since an id stays used for the life of
the run. It holds no state of its own: every answer follows from the records noted so far.

What it reads from the records:

- The last final RESULT of a command (APPLIED, REJECTED, EXPIRED) counts. A RESULT that only
  answers another entry (DUPLICATE, REJECTED ``id_conflict``) or adds to the first (ROLLED_BACK)
  changes nothing.
- A DEFERRED command waits until its INTENT or its RESULT; cancelling one is a RESULT for its id.
- Rollbacks don't touch what waits: a deferred command had no effect yet, and its fence will come
  on the new timeline. One that had begun before the cut stays used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandDeferred,
    CommandIntent,
    CommandResult,
    CommandSource,
    CommandStatus,
    CommandType,
    JournalRecord,
    TimelineCut,
)

ID_CONFLICT = "id_conflict"
"""Code of the outcome for an id that belongs to another command; it settles the entry only."""

HALT = "halt"
"""Kind of the decision by which a run halts itself."""
HALTED_AT = "halted_at"
"""Its value: when that was, as the id that the server would have given an entry. So has the outcome
of a HALT that came by a signal, which need not have come by an entry."""

_APPLIED = CommandStatus.COMMAND_STATUS_APPLIED
_MAY_BE_SENT_AGAIN = frozenset(
    {CommandStatus.COMMAND_STATUS_REJECTED, CommandStatus.COMMAND_STATUS_EXPIRED}
)
_FINAL = _MAY_BE_SENT_AGAIN | {_APPLIED}


class Identity(Enum):
    """How an entry's command relates to what the run has had before."""

    NEW = auto()
    """Not known: judge it and, if it is legal, apply it."""
    SAME = auto()
    """A second entry with a finished command: DUPLICATE, with the first outcome."""
    CONFLICT = auto()
    """A known id with another payload: REJECTED ``id_conflict``."""
    REDELIVERY = auto()
    """The same entry again, its command finished or deferred: give it its own outcome again."""
    WAITING = auto()
    """A second entry with a command that is deferred and not begun."""
    UNFINISHED = auto()
    """Its INTENT is in the journal and no RESULT: recovery finishes it, not the mailbox."""


@dataclass(slots=True)
class _Entry:
    """What is known of one command id. At most one of intent, deferred and result is set."""

    digest: bytes | None = None
    began: int = 0  # Sequence of its INTENT; of its RESULT if it never had one.
    intent: CommandIntent | None = None
    deferred: CommandDeferred | None = None
    result: CommandResult | None = None
    earlier: list[CommandResult] = field(default_factory=list)
    attempts: int = 0
    rolled_back: bool = False
    put_off: bool = False  # It was DEFERRED in this life, so that its entry is finished.

    @property
    def is_applied(self) -> bool:
        """Nothing that the journal says later can change that."""
        return self.result is not None and self.result.outcome.status == _APPLIED

    def begin_again(self, digest: bytes) -> None:
        """A new life for the id; what it came to before, REJECTED or EXPIRED, is history."""
        if self.result is not None:
            self.earlier.append(self.result)
            self.result, self.began, self.attempts = None, 0, 0
            self.put_off = False
        self.digest = digest


class CommandLedger:
    """The index of a run's commands. Built from all records, then kept current by :meth:`note`.

    Args:
        records: Taken note of at once, oldest first.

    Attributes:
        last_timeline: The highest timeline number used, 0 before the first record.
        starts: Processes that began to work on the run; the next lease token is one more.
        environment: Of the newest start: what bitwise equality depends on.
        planned: Of the newest start: how long the run is, in steps and in epochs; 0, 0: not known.
        resumed_at: The highest id of an entry whose RESUME was applied; empty before the first.
        paused_at: Likewise of a PAUSE.
        halted_at: Likewise of an entry that brought a HALT; where one came without an entry, the id
            that this would have had.
        halted_itself_at: The id that an entry would have had when the run last halted itself.
    """

    def __init__(self, records: Iterable[JournalRecord] = ()) -> None:
        self.last_timeline = 0
        self.starts = 0
        self.environment: dict[str, str] = {}
        self.planned = (0, 0)
        self.resumed_at = ""
        self.paused_at = ""
        self.halted_at = ""
        self.halted_itself_at = ""
        self._entries: dict[str, _Entry] = {}
        self._undone: dict[int, list[str]] = {}
        for record in records:
            self.note(record)

    def note(self, record: JournalRecord) -> None:
        """Take note of the journal's next record."""
        self.last_timeline = max(self.last_timeline, record.timeline)
        match record.WhichOneof("record"):
            case "started":
                self.starts += 1
                self.environment = dict(record.started.environment)
                self.planned = record.started.planned_steps, record.started.planned_epochs
            case "intent":
                self._note_intent(record.intent, record.sequence)
            case "attempt":
                self._entry(record.attempt.command_id).attempts += 1
            case "result":
                self._note_result(record.result, record.sequence)
            case "deferred":
                self._note_deferred(record.deferred)
            case "cut":
                undone = self._undone_by(record.cut)
                self._undone[record.cut.from_timeline] = undone
                for command_id in undone:
                    self._entries[command_id].rolled_back = True
            case "decision" if record.decision.kind == HALT:
                at = record.decision.values.get(HALTED_AT, "")
                self.halted_itself_at = _later(self.halted_itself_at, at)
            case _:
                pass  # Notes on the run, not on a command.

    def identify(
        self, command_id: str, digest: bytes, origin: CommandSource, *, resent: bool = False
    ) -> Identity:
        """How the command of a stream entry relates to what the run has had.

        Args:
            command_id: Its id.
            digest: Of its payload.
            origin: The entry that brought it.
            resent: The entry was made by a replay of dead letters. Its id may then be one that was
                REJECTED or EXPIRED, and the payload may differ (a new deadline): it is NEW.
        """
        entry = self._entries.get(command_id)
        if entry is None or entry.digest is None:
            return Identity.NEW
        if self.finished(command_id, origin, digest) is not None:
            return Identity.REDELIVERY
        result = entry.result
        if resent and result is not None and result.outcome.status in _MAY_BE_SENT_AGAIN:
            return Identity.NEW
        if entry.digest != digest:
            return Identity.CONFLICT
        if result is not None:
            return Identity.SAME
        if entry.deferred is None:
            return Identity.UNFINISHED
        same_entry = _place(entry.deferred.origin) == _place(origin)
        return Identity.REDELIVERY if same_entry else Identity.WAITING

    def finished(
        self, command_id: str, origin: CommandSource | None = None, digest: bytes | None = None
    ) -> CommandResult | None:
        """The RESULT that counts for an id, ``None`` while there is none.

        Args:
            command_id: Its id.
            origin: Only a RESULT of this very entry, which for a command that was sent again
                need not be the newest.
            digest: Only one of this payload.
        """
        entry = self._entries.get(command_id)
        if entry is None:
            return None
        if origin is None:
            return entry.result
        results = entry.earlier if entry.result is None else [*entry.earlier, entry.result]
        for result in reversed(results):
            if _place(result.origin) == _place(origin) and digest in {None, result.digest}:
                return result
        return None

    def deferred(self) -> list[CommandDeferred]:
        """Commands that wait for a later fence, in the order in which they were put off."""
        waiting = (entry.deferred for entry in self._entries.values())
        return [deferred for deferred in waiting if deferred is not None]

    def waiting(self, command_id: str) -> CommandDeferred | None:
        """The deferred command of this id if it waits still: then it can be cancelled."""
        entry = self._entries.get(command_id)
        return None if entry is None else entry.deferred

    def was_deferred(self, command_id: str) -> bool:
        """Was the command put off, so that its entry is finished and nobody delivers it again?"""
        entry = self._entries.get(command_id)
        return entry is not None and entry.put_off

    def unfinished(self) -> list[CommandIntent]:
        """INTENTs without a RESULT, in the order of the journal; on dead timelines as well."""
        found = [
            (entry.began, entry.intent)
            for entry in self._entries.values()
            if entry.intent is not None
        ]
        return [intent for _, intent in sorted(found, key=lambda item: item[0])]

    def attempts(self, command_id: str) -> int:
        """How often its execution was begun since it was last decided (or first seen)."""
        entry = self._entries.get(command_id)
        return 0 if entry is None else entry.attempts

    def rolled_back(self, cut: TimelineCut) -> list[str]:
        """Ids of the commands whose effect a rollback undid, in the order they were applied.

        Those that an earlier cut undid already aren't named again, nor is the rollback's own
        command.

        Args:
            cut: One that was noted; or one that is yet to be, as the newest record.
        """
        noted = self._undone.get(cut.from_timeline)
        return self._undone_by(cut) if noted is None else list(noted)

    def is_stop(self, record: JournalRecord) -> bool:
        """Is this the INTENT of a STOP?"""
        if not record.HasField("intent"):
            return False
        command = AdaptationCommand.FromString(record.intent.command)
        return command.command_type == CommandType.COMMAND_STOP

    def _undone_by(self, cut: TimelineCut) -> list[str]:
        found = [
            (entry.began, command_id)
            for command_id, entry in self._entries.items()
            if entry.is_applied
            and entry.began > cut.target_sequence
            and not entry.rolled_back
            and command_id != cut.command_id
        ]
        return [command_id for _, command_id in sorted(found)]

    def _entry(self, command_id: str) -> _Entry:
        return self._entries.setdefault(command_id, _Entry())

    def _note_intent(self, intent: CommandIntent, sequence: int) -> None:
        entry = self._entry(intent.command_id)
        if not entry.is_applied:
            entry.begin_again(intent.digest)
            entry.intent, entry.deferred, entry.began = intent, None, sequence

    def _note_deferred(self, deferred: CommandDeferred) -> None:
        entry = self._entry(deferred.command_id)
        if not entry.is_applied:
            entry.begin_again(deferred.digest)
            entry.deferred, entry.put_off = deferred, True
            # To the end: the order of the dict is the order in which they wait.
            self._entries[deferred.command_id] = self._entries.pop(deferred.command_id)

    def _note_result(self, result: CommandResult, sequence: int) -> None:
        if result.outcome.status not in _FINAL or result.outcome.code == ID_CONFLICT:
            return
        entry = self._entry(result.command_id)
        self._note_hold(result)
        if not entry.is_applied:
            entry.begin_again(result.digest)
            entry.began = entry.began or sequence
            entry.intent = entry.deferred = None
            entry.result, entry.attempts = result, 0

    def _note_hold(self, result: CommandResult) -> None:
        """What holds and frees a run is weighed by the ids that the server gave the entries."""
        outcome, entry_id = result.outcome, result.origin.entry_id
        if outcome.status != _APPLIED:
            return
        fields = outcome.details.fields
        if outcome.command_type == CommandType.COMMAND_EMERGENCY:
            if "level" in fields and fields["level"].string_value == "HALT":
                at = fields[HALTED_AT].string_value if HALTED_AT in fields else ""
                self.halted_at = _later(self.halted_at, entry_id or at)
        elif outcome.command_type == CommandType.COMMAND_RESUME:
            self.resumed_at = _later(self.resumed_at, entry_id)
        elif outcome.command_type == CommandType.COMMAND_PAUSE:
            self.paused_at = _later(self.paused_at, entry_id)


def id_at(milliseconds: int | None) -> str:
    """The first id of the server's millisecond; empty where there is no server."""
    return "" if milliseconds is None else f"{milliseconds}-0"


def order(entry_id: str) -> tuple[int, int]:
    """What stream entries are ordered by; before all others if it is no id."""
    milliseconds, _, number = entry_id.partition("-")
    if not (milliseconds.isdecimal() and number.isdecimal()):
        return (-1, -1)
    return int(milliseconds), int(number)


def _later(one: str, other: str) -> str:
    return max(one, other, key=order)


def _place(origin: CommandSource) -> tuple[str, str]:
    return origin.stream, origin.entry_id
