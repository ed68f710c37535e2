"""Doing again what the journal has: after a crash, after a rollback, when a run is repeated.

Records of the live path are applied at their steps, before anything new, and commands must come to
the RESULT that is recorded. One that ended its process three times is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tolaria_bus.leyline import (
    CommandAttempt,
    CommandIntent,
    CommandResult,
    CommandType,
    EmergencyLevel,
    JournalRecord,
)
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.tolaria.control.commands import CHECKPOINT_FAILED, CommandRefused, Steerable
from tolaria_bus.tolaria.control.execution import Execution, journaled
from tolaria_bus.tolaria.control.judging import JUDGING_FAILED
from tolaria_bus.tolaria.control.mailbox import Delivery, Outbound
from tolaria_bus.tolaria.control.outcomes import FATAL, Outcomes
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.rollback import describe
from tolaria_bus.tolaria.recovery.run_folder import RunFolder

MAX_ATTEMPTS = 3
_NEVER_AGAIN = frozenset({CommandType.COMMAND_CANCEL, CommandType.COMMAND_PROFILE})
"""Answered, it isn't done again: one's effect is in the ledger, the other has none on the run."""
_NEVER_BEGUN = frozenset({FATAL, JUDGING_FAILED})
"""Codes of commands that had no effect and needn't come to the same end again: what judging one
raised may have been a fault that is mended by now."""


class Divergence(RuntimeError):
    """A command that was applied again came to another result than the journal says."""


class Recovering:
    """Applies journaled records at their steps. Training thread only, at a fence.

    Args:
        run: What is steered.
        folder: Of the run.
        outbound: Gets outcomes.
        telemetry: Knows from here whether steps are being run again.
        outcomes: Builds them.
        execution: Does commands.
    """

    def __init__(
        self,
        run: Steerable,
        folder: RunFolder,
        outbound: Outbound,
        telemetry: Telemetry,
        outcomes: Outcomes,
        execution: Execution,
    ) -> None:
        self._run = run
        self._folder = folder
        self._ledger = folder.ledger
        self._outbound = outbound
        self._telemetry = telemetry
        self._outcomes = outcomes
        self._execution = execution
        self._replay: deque[JournalRecord] = deque()
        self._replayed = 0

    def begin(self, records: Iterable[JournalRecord], restored: int) -> None:
        """Take on records to be applied, each at its step.

        Args:
            records: In the journal's order.
            restored: The last record that the state contains.
        """
        self._replay = deque(records)
        self._replayed = restored
        self._telemetry.replaying = self.behind

    @property
    def behind(self) -> bool:
        """Are journaled steps still being run again? No command is applied meanwhile."""
        return bool(self._replay)

    @property
    def next_step(self) -> int:
        """The step of the next record; only while :attr:`behind`."""
        return self._replay[0].step

    @property
    def cut_is_next(self) -> bool:
        """Is a rollback the first thing to be done again at this very fence?"""
        return (
            bool(self._replay)
            and self._replay[0].HasField("cut")
            and self._replay[0].step == self._run.state.step
        )

    @property
    def contained(self) -> int:
        """Sequence of the last journal record whose effect the present state has."""
        return self._replayed if self._replay else self._folder.last_effect

    def apply(self) -> None:
        """Apply what is of this step.

        Raises:
            Divergence: The journal and this run don't agree.
        """
        state = self._run.state
        while self._replay and self._replay[0].step <= state.step:
            record = self._replay.popleft()
            self._replayed = record.sequence
            if record.step < state.step:
                raise Divergence(
                    f"journal record {record.sequence} belongs to step {record.step}, "
                    f"the run is at step {state.step} already"
                )
            if record.HasField("cut"):
                self._run.apply_cut(record.cut, record.timeline)
            elif record.HasField("decision"):
                self._run.apply_decision(record.decision)
            elif record.HasField("intent"):
                self._apply_again(record.intent)

    def finish_contained(self) -> None:
        """Write the RESULT of commands whose effect is in the restored state without one.

        A process that dies between an effect's checkpoint (or a rollback's cut) and its RESULT
        leaves such a command; it is not applied again.
        """
        ahead = {item.intent.command_id for item in self._replay if item.HasField("intent")}
        for intent in self._ledger.unfinished():
            if intent.command_id not in ahead:
                delivery = journaled(intent)
                details = {"recovered": True, **self._rollback_details(intent.command_id)}
                if delivery.command.HasField("emergency"):
                    level = delivery.command.emergency.level
                    details["level"] = short_name(EmergencyLevel, level)
                outcome = self._outcomes.applied(delivery.command, details)
                self._execution.finish(delivery, outcome)

    def tell_undone(self, record: JournalRecord) -> None:
        """A second outcome, ROLLED_BACK, for each command that a rollback has undone.

        Args:
            record: The cut. Outcomes of it that the journal knows to be told aren't told again.
        """
        for command_id in self._folder.untold(record):
            result = self._ledger.finished(command_id)
            if result is None:
                continue
            outcome = self._outcomes.rolled_back(result, record.cut, record.timeline)
            self._outbound.outcome(outcome, None)
            told = CommandResult(
                command_id=command_id,
                digest=result.digest,
                outcome=outcome,
                origin=result.origin,
            )
            try:
                self._execution.write(JournalRecord(result=told))
            except JournalUnwritable as error:
                # The next start tells it once more.
                self._execution.block(error)
                return

    def _rollback_details(self, command_id: str) -> dict[str, Any]:
        for record in self._folder.cuts():
            if record.cut.command_id == command_id:
                return describe(record.cut, record.timeline)
        return {}

    def _apply_again(self, intent: CommandIntent) -> None:
        delivery = journaled(intent)
        command = delivery.command
        # Of this very entry: a command that was given up may have been sent again since.
        recorded = self._ledger.finished(intent.command_id, intent.origin, intent.digest)
        attempts = self._ledger.attempts(intent.command_id)
        if recorded is None and attempts >= MAX_ATTEMPTS:
            self._give_up(delivery, attempts)
            return
        if recorded is not None and recorded.outcome.code in _NEVER_BEGUN:
            self._run.tried(command, failure=recorded.outcome.reason)
            return
        if recorded is not None and command.command_type in _NEVER_AGAIN:
            return
        attempt = CommandAttempt(command_id=command.command_id, number=attempts + 1)
        self._execution.write(JournalRecord(attempt=attempt))
        if recorded is None:
            # It comes to its end for the first time: what it says then has not been said before.
            self._telemetry.replaying = self.behind
        outcome = self._execution.execute(command)
        if recorded is None:
            self._execution.finish(delivery, outcome)
        elif (
            recorded.outcome.status != outcome.status or recorded.outcome.code != outcome.code
        ) and CHECKPOINT_FAILED not in {recorded.outcome.code, outcome.code}:
            # Whether a checkpoint can be written is the disk's to say, and changes no weight.
            raise Divergence(
                f"command {command.command_id} came to {outcome.code!r} at step {outcome.step}, "
                f"the journal says {recorded.outcome.code!r}: {outcome.reason}"
            )
        self._run.tried(command, failure=outcome.reason)

    def _give_up(self, delivery: Delivery, attempts: int) -> None:
        refusal = CommandRefused(FATAL, f"{attempts} attempts to apply it ended the process")
        # Before its RESULT: who dies in between comes here again, and says it twice.
        self._telemetry.replaying = self.behind
        self._telemetry.alert(
            "command_given_up", str(refusal), command_id=delivery.command.command_id
        )
        gone = self._ledger.was_deferred(delivery.command.command_id)
        delivery = replace(delivery, entry_gone=gone)
        self._execution.finish(delivery, self._outcomes.refused(delivery.command, refusal))
        self._run.tried(delivery.command, failure=str(refusal))
