"""Doing a command: INTENT and ATTEMPT to the journal, the effect, RESULT, the outcome.

Where the journal can't be written nothing is applied; where only the RESULT can't be, the effect
stays, and the RESULT and the outcome wait until it can.
"""

from __future__ import annotations

import time

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandAttempt,
    CommandDeferred,
    CommandIntent,
    CommandOutcome,
    CommandResult,
    CommandStatus,
    CommandType,
    JournalRecord,
)
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.safety.emergency import JOURNAL_UNWRITABLE
from tolaria_bus.tolaria.control.commands import CommandRefused, Details, Steerable, prepare
from tolaria_bus.tolaria.control.judging import judging
from tolaria_bus.tolaria.control.mailbox import Delivery, Outbound
from tolaria_bus.tolaria.control.mode import note_mode
from tolaria_bus.tolaria.control.observing import window_refused
from tolaria_bus.tolaria.control.outcomes import Outcomes
from tolaria_bus.tolaria.control.schedule import Due
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.run_folder import RunFolder

RETRY_SECONDS = 1.0
"""Between two tries to write to a journal that could not be written."""

WORK = frozenset(
    {
        CommandType.COMMAND_SEED,
        CommandType.COMMAND_OPTIMIZER,
        CommandType.COMMAND_STRUCTURAL_PRUNING,
        CommandType.COMMAND_CHECKPOINT,
        CommandType.COMMAND_ROLLBACK,
        CommandType.COMMAND_EMERGENCY,
    }
)
"""Commands that are work themselves: structure, checkpoints, rollbacks."""


class Execution:
    """Applies commands, one at a time, and keeps the journal ahead of each.

    Attributes:
        applied: Commands that took effect in this process, replayed ones included.
        blocked: The journal could not be written; commands wait.
        work_seconds: What commands took in this process that are work themselves.
    """

    def __init__(
        self,
        run: Steerable,
        folder: RunFolder,
        outbound: Outbound,
        telemetry: Telemetry,
        outcomes: Outcomes,
    ) -> None:
        self.applied = 0
        self.blocked = False
        self.work_seconds = 0.0
        self._run = run
        self._folder = folder
        self._outbound = outbound
        self._telemetry = telemetry
        self._outcomes = outcomes
        self._unsettled: list[tuple[Delivery, CommandOutcome, bool]] = []
        self._retry_at = 0.0

    def check(self, command: AdaptationCommand) -> None:
        """Raise CommandRefused if a command is not legal now; change nothing."""
        if command.command_type == CommandType.COMMAND_CANCEL:
            self._deferred(command.cancel.command_id)
        else:
            self._run.admit(command)
            prepare(command, self._run)

    def attempt(self, delivery: Delivery, place: int, *, finishes_entry: bool = True) -> None:
        """Journal a command, apply it, answer it.

        Args:
            delivery: The command.
            place: Among the commands of this fence.
            finishes_entry: The outcome finishes the delivery's stream entry.

        Raises:
            JournalUnwritable: Nothing was applied.
        """
        command = delivery.command
        intent = CommandIntent(
            command_id=command.command_id,
            command=delivery.payload,
            digest=delivery.digest,
            origin=delivery.origin,
            place=place,
        )
        attempt = CommandAttempt(command_id=command.command_id, number=1)
        begun = JournalRecord(intent=intent), JournalRecord(attempt=attempt)
        if _changes_nothing(command):
            # No effect comes between the two: one write to the disk does for INTENT and RESULT.
            outcome = self._outcomes.applied(command)
            self.write(*begun, self._result(delivery, outcome))
            self.execute(command)
            self._hand_out(delivery, outcome, finishes_entry=finishes_entry)
            self._run.tried(command, failure="")
            return
        self.write(*begun)
        outcome = self.execute(command)
        self.finish(delivery, outcome, finishes_entry=finishes_entry)
        if outcome.code != "gate_failed":  # A gate that refuses works as it should.
            self._run.tried(command, failure=outcome.reason)

    def execute(self, command: AdaptationCommand) -> CommandOutcome:
        """Apply a command whose INTENT is in the journal."""
        observations = self._run.observations
        self._run.handshake.answered(command)
        before = observations.before(command)
        started = time.perf_counter()
        try:
            if command.command_type == CommandType.COMMAND_CANCEL:
                details = self._cancel(command)
            else:
                with judging(command, self._telemetry):
                    effect = prepare(command, self._run)
                details = effect()
        except CommandRefused as refusal:
            return self._outcomes.refused(command, refusal)
        again = command.command_type == CommandType.COMMAND_MODE
        note_mode(self._run.state.mode, self._run.state.step, anew=again)
        observations.begin(command, before)
        self._run.handshake.intervened(command)
        outcome = self._outcomes.applied(command, details)
        seconds = time.perf_counter() - started
        outcome.duration_ms = seconds * 1e3
        if command.command_type in WORK:
            self.work_seconds += seconds
        self.applied += 1
        return outcome

    def defer(self, delivery: Delivery, due: Due) -> None:
        """Put a command off to a later fence; from now on it is the journal's.

        Raises:
            JournalUnwritable: It was not put off.
        """
        command = delivery.command
        deferred = CommandDeferred(
            command_id=command.command_id,
            command=delivery.payload,
            digest=delivery.digest,
            origin=delivery.origin,
            at_step=due.step or 0,
            at_epoch=due.epoch or 0,
        )
        self.write(JournalRecord(deferred=deferred))
        self._outbound.outcome(self._outcomes.deferred(command, str(due)), delivery)

    def finish(
        self, delivery: Delivery, outcome: CommandOutcome, *, finishes_entry: bool = True
    ) -> None:
        """Journal a RESULT and hand out its outcome; both wait if the journal can't be written."""
        try:
            self.write(self._result(delivery, outcome))
        except JournalUnwritable as error:
            self._unsettled.append((delivery, outcome, finishes_entry))
            self.block(error)
            return
        self._hand_out(delivery, outcome, finishes_entry=finishes_entry)

    def block(self, error: JournalUnwritable) -> None:
        """Let commands wait until the journal can be written again."""
        if not self.blocked:
            self._telemetry.alert("journal_unwritable", f"commands wait: {error}", critical=True)
            self._run.emergencies.note(JOURNAL_UNWRITABLE, str(error))
        self.blocked = True
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def ready(self) -> bool:
        """May commands be applied? After a failed write it is tried again about once a second."""
        if not self.blocked:
            return True
        if time.monotonic() < self._retry_at:
            return False
        unsettled, self._unsettled = self._unsettled, []
        for delivery, outcome, finishes_entry in unsettled:
            self.finish(delivery, outcome, finishes_entry=finishes_entry)
        self.blocked = bool(self._unsettled)
        return not self.blocked

    def write(self, *records: JournalRecord) -> None:
        """Append records with the run's coordinates. Raises JournalUnwritable."""
        self._folder.write(*map(self._run.state.stamp, records))

    def _result(self, delivery: Delivery, outcome: CommandOutcome) -> JournalRecord:
        outcome.stream, outcome.entry_id = delivery.stream, delivery.entry_id
        result = CommandResult(
            command_id=outcome.command_id,
            digest=delivery.digest,
            outcome=outcome,
            origin=delivery.origin,
        )
        return JournalRecord(result=result)

    def _hand_out(
        self, delivery: Delivery, outcome: CommandOutcome, *, finishes_entry: bool
    ) -> None:
        self._outbound.outcome(outcome, delivery if finishes_entry else None)
        self._tell(outcome)

    def _cancel(self, command: AdaptationCommand) -> Details:
        wanted = command.cancel.command_id
        reason = f"cancelled by command {command.command_id}"
        before = self._folder.ledger.finished(wanted)
        # A process may have died between the two RESULTs of a cancellation.
        if before is None or before.outcome.reason != reason:
            target = journaled(self._deferred(wanted))
            refusal = CommandRefused("cancelled", reason)
            self.finish(
                target, self._outcomes.refused(target.command, refusal), finishes_entry=False
            )
        return {"cancelled": wanted}

    def _deferred(self, command_id: str) -> CommandDeferred:
        waiting = self._folder.ledger.waiting(command_id)
        if waiting is None:
            raise CommandRefused(
                "unknown_command", f"command_id {command_id!r}: no such deferred command"
            )
        return waiting

    def _tell(self, outcome: CommandOutcome) -> None:
        name = short_name(CommandType, outcome.command_type)
        status = short_name(CommandStatus, outcome.status)
        self._telemetry.event(
            "command",
            f"{name} {status} at step {outcome.step}" + (outcome.reason and f": {outcome.reason}"),
            command_id=outcome.command_id,
            status=status,
            code=outcome.code,
        )


def _changes_nothing(command: AdaptationCommand) -> bool:
    continues = command.command_type == CommandType.COMMAND_CONTINUE
    return continues and command.WhichOneof("payload") is None and not window_refused(command)


def journaled(record: CommandIntent | CommandDeferred) -> Delivery:
    """A journaled command as the delivery that it once was."""
    return Delivery(
        AdaptationCommand.FromString(record.command),
        record.command,
        stream=record.origin.stream,
        entry_id=record.origin.entry_id,
        source=record.origin.source,
        digest=record.digest,
    )
