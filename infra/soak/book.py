"""What was sent to the runs, and what they said to it. Written by many threads, read at the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tolaria_bus.leyline import CommandOutcome, CommandStatus

REPEATED = frozenset({"duplicate", "id_conflict"})
"""Codes of the answers to further entries with a command's id."""
FINAL = frozenset(
    {
        CommandStatus.COMMAND_STATUS_APPLIED,
        CommandStatus.COMMAND_STATUS_REJECTED,
        CommandStatus.COMMAND_STATUS_EXPIRED,
    }
)
DEFERRED = CommandStatus.COMMAND_STATUS_DEFERRED
ROLLED_BACK = CommandStatus.COMMAND_STATUS_ROLLED_BACK
APPLIED = CommandStatus.COMMAND_STATUS_APPLIED


@dataclass
class Sent:
    """One command for one run.

    Attributes:
        run: The run.
        kind: For the report.
        at: When its entry was confirmed by the server, monotonic seconds.
        entries: How many entries have its id; of a signal nobody knows, for it comes by many ways.
        reason: That an EMERGENCY's signal has.
        heard: When anything was first said to it, DEFERRED too; 0: nothing yet.
        finals: Every answer that counts.
        repeats: How many answers say that an entry was a repetition.
        late: It was told already that it has waited too long.
    """

    run: str
    kind: str
    at: float
    entries: int = 1
    reason: str = ""
    heard: float = 0.0
    finals: list[CommandOutcome] = field(default_factory=list)
    repeats: int = 0
    late: bool = False

    @property
    def signal(self) -> bool:
        """It went over the emergency stream."""
        return self.kind.startswith("signal")

    @property
    def answered(self) -> bool:
        """Everything that is owed to it is there."""
        return len(self.finals) >= 1 and (self.signal or self.repeats >= self.entries - 1)


@dataclass
class Book:
    """All of it.

    Attributes:
        sent: By run and command id.
        hostile: Entries that nobody may use, by stream and entry id: what they are, and the reasons
            that their dead letters may have.
        kinds: How many of each kind were sent.
        statuses: How many outcomes of each status came, Tamiyo's too.
        outcome_ids: How often each outcome was on its stream, by run and message id.
        applied: How often each command was answered APPLIED, by run and id, whoever sent it.
        rolled_back: How often each was told to be undone.
        strangers: Outcomes for commands that nobody here has sent, by who issued them.
    """

    sent: dict[tuple[str, str], Sent] = field(default_factory=dict)
    hostile: dict[tuple[str, str], tuple[str, frozenset[str]]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    outcome_ids: Counter[tuple[str, str]] = field(default_factory=Counter)
    applied: Counter[tuple[str, str]] = field(default_factory=Counter)
    rolled_back: Counter[tuple[str, str]] = field(default_factory=Counter)
    strangers: Counter[str] = field(default_factory=Counter)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def about_to_send(self, run: str, command_id: str, kind: str, reason: str = "") -> None:
        """An entry goes out: noted before, for its answer may be quicker than the reply."""
        with self.lock:
            known = self.sent.get((run, command_id))
            if known is None:
                self.sent[run, command_id] = Sent(run, kind, time.monotonic(), reason=reason)
            else:
                known.entries += 1
                known.at = max(known.at, time.monotonic())
            self.kinds[kind] += 1

    def confirmed(self, run: str, command_id: str) -> None:
        """The server has it; from now on it is waited for."""
        with self.lock:
            found = self.sent[run, command_id]
            if not found.heard:
                found.at = time.monotonic()

    def heard(self, run: str, outcome: CommandOutcome, message_id: str) -> Sent | None:
        """An outcome came.

        Returns:
            The command, if this is the first that was said to it.
        """
        with self.lock:
            self.outcome_ids[run, message_id] += 1
            self.statuses[CommandStatus.Name(outcome.status).removeprefix("COMMAND_STATUS_")] += 1
            name = (run, outcome.command_id)
            repeated = outcome.code in REPEATED
            if outcome.status == APPLIED:
                self.applied[name] += 1
            if outcome.status == ROLLED_BACK:
                self.rolled_back[name] += 1
            found = self.sent.get(name)
            if found is None:
                self.strangers[outcome.issued_by or "?"] += 1
                return None
            first, found.heard = not found.heard, found.heard or time.monotonic()
            if repeated:
                found.repeats += 1
            elif outcome.status in FINAL:
                found.finals.append(outcome)
            return found if first else None

    def waiting(self) -> list[tuple[str, Sent]]:
        """What is not answered yet, with its id."""
        with self.lock:
            return [(name[1], sent) for name, sent in self.sent.items() if not sent.answered]

    def refuse(self, stream: str, entry_id: str, what: str, *reasons: str) -> None:
        """An entry was sent that has to become a dead letter."""
        with self.lock:
            self.hostile[stream, entry_id] = (what, frozenset(reasons))
            self.kinds[what] += 1
