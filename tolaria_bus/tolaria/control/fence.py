"""The fence between two optimizer steps: the only place where a run is changed from outside.

The life of a command, each step durable before the next:

1. Judge, once: its id, its deadline, the fence it names, its legality.
2. Journal INTENT (all its bytes, the step, its place in the fence) and ATTEMPT in one write.
3. Apply it.
4. Journal RESULT.
5. Hand out the outcome; the bus side publishes it and finishes the entry in one atomic script.

A process may die anywhere in between. On the way back the journal's live records are applied
again at their steps, before anything new (:class:`Fence` given ``replay``), and must come to the
recorded RESULT. What is redelivered is answered from the ledger. So the effect is there exactly
once, and so is its outcome.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable

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
    TimelineCut,
)
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.tolaria.control.commands import CommandRefused, Details, Steerable, prepare
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox, Outbound, in_order
from tolaria_bus.tolaria.control.mode import held
from tolaria_bus.tolaria.control.schedule import Due, due_fence
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.ledger import Identity
from tolaria_bus.tolaria.recovery.run_folder import RunFolder

NEVER = sys.maxsize
MAX_ATTEMPTS = 3
HELD_POLL_SECONDS = 0.5
"""A held run looks at the clock this often; a delivery or a stop request wakes it at once."""
RETRY_SECONDS = 1.0
"""Between two tries to write to a journal that could not be written."""


class Divergence(RuntimeError):
    """A command that was applied again came to another result than the journal says."""


class Fence:
    """Takes commands from the mailbox and applies them exactly once. Training thread only.

    Attributes:
        next_step: The next step at which the fence must be opened though nothing waits in the
            mailbox; the trainer compares it at every step.
    """

    def __init__(
        self,
        run: Steerable,
        run_id: str,
        *,
        folder: RunFolder,
        mailbox: Mailbox,
        outbound: Outbound,
        telemetry: Telemetry,
        replay: Iterable[JournalRecord] = (),
        restored: int = 0,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._run = run
        self._run_id = run_id
        self._folder = folder
        self._ledger = folder.ledger
        self._mailbox = mailbox
        self._outbound = outbound
        self._telemetry = telemetry
        self._replay = deque(replay)
        self._replayed = restored
        self._wall_ns = wall_ns
        self._waiting: list[Delivery] = []
        self._unsettled: list[tuple[Delivery, CommandOutcome, bool]] = []
        self._retry_at: float | None = None
        self._place = 0
        self.applied = 0
        self._telemetry.replaying = bool(self._replay)
        self.next_step = 0

    @property
    def contained(self) -> int:
        """Sequence of the last journal record whose effect the present state has."""
        return self._replayed if self._replay else self._folder.last_effect

    def tell_undone(self, cut: TimelineCut) -> None:
        """A second outcome, ROLLED_BACK, for each command that a rollback has undone."""
        for command_id in self._ledger.rolled_back(cut):
            result = self._ledger.finished(command_id)
            if result is None or command_id == cut.command_id:
                continue
            outcome = CommandOutcome()
            outcome.CopyFrom(result.outcome)
            outcome.status = CommandStatus.COMMAND_STATUS_ROLLED_BACK
            outcome.code = "rolled_back"
            outcome.reason = f"undone by the rollback to step {cut.target_step} ({cut.cause})"
            outcome.timeline, outcome.step = self._run.state.timeline, self._run.state.step
            outcome.decided_at.FromNanoseconds(self._wall_ns())
            self._outbound.outcome(outcome, None)

    def open(self, epoch_ended: int | None = None) -> None:
        """Apply what is due here; while the run is held, stay until it is resumed or stopped.

        Args:
            epoch_ended: The epoch that has just been completed (1, 2, ...), at an epoch fence.

        Raises:
            Divergence: The journal and this run don't agree.
        """
        self._place = 0
        self._apply_journaled()
        if self._replay:
            self.next_step = self._replay[0].step
            return
        self._telemetry.replaying = False
        if self._writable():
            self._apply_deferred(epoch_ended)
        self._apply_waiting(epoch_ended)
        while held(self._run.state.mode) and not self._ending:
            self._mailbox.wait(HELD_POLL_SECONDS)
            self._apply_waiting(None)
        self.next_step = self._next_due()

    @property
    def _ending(self) -> bool:
        return bool(self._mailbox.stop_reason or self._run.stopping)

    # What the journal has

    def finish_contained(self) -> None:
        """Write the RESULT of commands whose effect is in the restored state without one.

        A process that dies between an effect's checkpoint (or a rollback's cut) and its RESULT
        leaves such a command; it is not applied again.
        """
        ahead = {item.intent.command_id for item in self._replay if item.HasField("intent")}
        for intent in self._ledger.unfinished():
            if intent.command_id in ahead:
                continue
            command = AdaptationCommand.FromString(intent.command)
            outcome = self._outcome(command, CommandStatus.COMMAND_STATUS_APPLIED, "ok", "")
            outcome.details.update({"recovered": True})
            self._finish(_delivery(intent), outcome)

    def _apply_journaled(self) -> None:
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
            # The other kinds are notes: they change nothing.

    def _apply_again(self, intent: CommandIntent) -> None:
        delivery = _delivery(intent)
        command = delivery.command
        recorded = self._ledger.finished(intent.command_id)
        attempts = self._ledger.attempts(intent.command_id)
        if recorded is None and attempts >= MAX_ATTEMPTS:
            outcome = self._outcome(
                command,
                CommandStatus.COMMAND_STATUS_REJECTED,
                "fatal",
                f"{attempts} attempts to apply it ended the process",
            )
            self._finish(delivery, outcome)
            self._telemetry.alert(
                "command_given_up", outcome.reason, command_id=command.command_id, attempts=attempts
            )
            return
        if recorded is not None and (
            recorded.outcome.code == "fatal" or command.command_type == CommandType.COMMAND_CANCEL
        ):
            # A cancellation's effect is in the ledger, which has it already.
            return
        self._append(
            JournalRecord(
                attempt=CommandAttempt(command_id=command.command_id, number=attempts + 1)
            )
        )
        outcome = self._execute(command)
        if recorded is None:
            self._finish(delivery, outcome)
        elif (recorded.outcome.status, recorded.outcome.code) != (outcome.status, outcome.code):
            raise Divergence(
                f"command {command.command_id} came to {outcome.code!r} at step {outcome.step}, "
                f"the journal says {recorded.outcome.code!r}: {outcome.reason}"
            )

    # What was put off to this fence

    def _apply_deferred(self, epoch_ended: int | None) -> None:
        state = self._run.state
        for waiting in self._ledger.deferred():
            at_step = bool(waiting.at_step) or not waiting.at_epoch
            if at_step and waiting.at_step > state.step:
                continue
            if not at_step and (epoch_ended is None or waiting.at_epoch > epoch_ended):
                continue
            # Its entry was acknowledged when it was put off; this outcome finishes none.
            try:
                self._attempt(_delivery(waiting), finishes_entry=False)
            except JournalUnwritable as error:
                self._cannot_write(error)
                return

    def _next_due(self) -> int:
        if held(self._run.state.mode) or self._waiting or self._retry_at is not None:
            return 0
        steps = [item.at_step for item in self._ledger.deferred() if item.at_step]
        return min(steps, default=NEVER)

    # What the mailbox has

    def _cannot_write(self, error: JournalUnwritable) -> None:
        if self._retry_at is None:
            self._telemetry.alert("journal_unwritable", f"commands wait: {error}", critical=True)
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def _writable(self) -> bool:
        """After a failed write: has the journal recovered? Tried about once a second."""
        if self._retry_at is None:
            return True
        if time.monotonic() < self._retry_at:
            return False
        unsettled, self._unsettled = self._unsettled, []
        for delivery, outcome, finishes_entry in unsettled:
            self._finish(delivery, outcome, finishes_entry=finishes_entry)
        if self._unsettled:
            return False
        self._retry_at = None
        return True

    def _apply_waiting(self, epoch_ended: int | None) -> None:
        if not self._writable():
            self._waiting += self._mailbox.take()
            return
        deliveries = in_order([*self._waiting, *self._mailbox.take()])
        self._waiting = []
        for index, delivery in enumerate(deliveries):
            if self._run.stopping:
                # Not begun: the entries stay pending and are redelivered to the next worker.
                self._waiting = deliveries[index:]
                return
            try:
                self._receive(delivery, epoch_ended)
            except JournalUnwritable as error:
                # Nothing was applied. The entry stays unacknowledged and is tried again here.
                self._waiting = deliveries[index:]
                self._cannot_write(error)
                return

    def _receive(self, delivery: Delivery, epoch_ended: int | None) -> None:
        command = delivery.command
        known = self._ledger.identify(command.command_id, delivery.digest, delivery.origin)
        if known is not Identity.NEW:
            self._outbound.outcome(self._answer_known(delivery, known), delivery)
            return
        try:
            self._check_deadline(command)
            due = due_fence(command, self._run.state, epoch_ended)
            if due is not None:
                self._defer(delivery, due)
                return
            if command.command_type == CommandType.COMMAND_CANCEL:
                self._check_cancel(command)
            else:
                prepare(command, self._run)
        except CommandRefused as refusal:
            self._finish(delivery, self._refusal(command, refusal))
            return
        self._attempt(delivery, finishes_entry=True)

    def _answer_known(self, delivery: Delivery, known: Identity) -> CommandOutcome:
        command = delivery.command
        finished = self._ledger.finished(command.command_id)
        first = (
            finished.outcome
            if finished is not None
            else self._outcome(
                command, CommandStatus.COMMAND_STATUS_DEFERRED, "deferred", "it waits for its fence"
            )
        )
        if known is Identity.REDELIVERY:
            return first
        if known is Identity.CONFLICT:
            return self._outcome(
                command,
                CommandStatus.COMMAND_STATUS_REJECTED,
                "id_conflict",
                f"command_id {command.command_id!r} belongs to another command already",
            )
        outcome = self._outcome(
            command,
            CommandStatus.COMMAND_STATUS_DUPLICATE,
            "duplicate",
            f"the same command was answered before, at step {first.step}",
        )
        outcome.first_outcome.CopyFrom(first)
        return outcome

    def _check_deadline(self, command: AdaptationCommand) -> None:
        if not command.execution_deadline_ms:
            return
        late_ms = (self._wall_ns() - command.issued_at.ToNanoseconds()) / 1e6
        if late_ms > command.execution_deadline_ms:
            raise CommandRefused(
                "deadline",
                f"{late_ms:.0f} ms after it was issued; its deadline was "
                f"{command.execution_deadline_ms} ms",
            )

    def _defer(self, delivery: Delivery, due: Due) -> None:
        command = delivery.command
        self._append(
            JournalRecord(
                deferred=CommandDeferred(
                    command_id=command.command_id,
                    command=delivery.payload,
                    digest=delivery.digest,
                    origin=delivery.origin,
                    at_step=due.step or 0,
                    at_epoch=due.epoch or 0,
                )
            )
        )
        outcome = self._outcome(
            command,
            CommandStatus.COMMAND_STATUS_DEFERRED,
            "deferred",
            f"it takes effect at the fence of {due}",
        )
        self._outbound.outcome(outcome, delivery)

    def _check_cancel(self, command: AdaptationCommand) -> None:
        wanted = command.cancel.command_id
        if all(item.command_id != wanted for item in self._ledger.deferred()):
            raise CommandRefused(
                "unknown_command", f"command_id {wanted!r}: no such deferred command"
            )

    # Doing it

    def _attempt(self, delivery: Delivery, *, finishes_entry: bool) -> None:
        command = delivery.command
        self._place += 1
        self._append(
            JournalRecord(
                intent=CommandIntent(
                    command_id=command.command_id,
                    command=delivery.payload,
                    digest=delivery.digest,
                    origin=delivery.origin,
                    place=self._place,
                )
            ),
            JournalRecord(attempt=CommandAttempt(command_id=command.command_id, number=1)),
        )
        self._finish(delivery, self._execute(command), finishes_entry=finishes_entry)

    def _execute(self, command: AdaptationCommand) -> CommandOutcome:
        started = time.perf_counter()
        try:
            if command.command_type == CommandType.COMMAND_CANCEL:
                details = self._cancel(command)
            else:
                details = prepare(command, self._run)()
        except CommandRefused as refusal:
            return self._refusal(command, refusal)
        outcome = self._outcome(command, CommandStatus.COMMAND_STATUS_APPLIED, "ok", "")
        outcome.duration_ms = (time.perf_counter() - started) * 1e3
        outcome.details.update(details)
        self.applied += 1
        return outcome

    def _cancel(self, command: AdaptationCommand) -> Details:
        wanted = command.cancel.command_id
        before = self._ledger.finished(wanted)
        reason = f"cancelled by command {command.command_id}"
        if before is None or before.outcome.reason != reason:
            self._check_cancel(command)
            deferred = next(item for item in self._ledger.deferred() if item.command_id == wanted)
            target = _delivery(deferred)
            outcome = self._outcome(
                target.command, CommandStatus.COMMAND_STATUS_REJECTED, "cancelled", reason
            )
            self._finish(target, outcome, finishes_entry=False)
        return {"cancelled": wanted}

    def _finish(
        self, delivery: Delivery, outcome: CommandOutcome, *, finishes_entry: bool = True
    ) -> None:
        outcome.stream, outcome.entry_id = delivery.stream, delivery.entry_id
        result = CommandResult(
            command_id=outcome.command_id,
            digest=delivery.digest,
            outcome=outcome,
            origin=delivery.origin,
        )
        try:
            self._append(JournalRecord(result=result))
        except JournalUnwritable as error:
            # Applied, and not to be applied again: only its RESULT and its outcome wait.
            self._unsettled.append((delivery, outcome, finishes_entry))
            self._cannot_write(error)
            return
        self._outbound.outcome(outcome, delivery if finishes_entry else None)
        name = short_name(CommandType, outcome.command_type)
        status = short_name(CommandStatus, outcome.status)
        self._telemetry.event(
            "command",
            f"{name} {status} at step {outcome.step}" + (outcome.reason and f": {outcome.reason}"),
            command_id=outcome.command_id,
            status=status,
            code=outcome.code,
        )

    def _append(self, *records: JournalRecord) -> None:
        state = self._run.state
        for record in records:
            record.timeline, record.step, record.epoch = state.timeline, state.step, state.epoch
        self._folder.write(*records)

    # Saying it

    def _refusal(self, command: AdaptationCommand, refusal: CommandRefused) -> CommandOutcome:
        status = (
            CommandStatus.COMMAND_STATUS_EXPIRED
            if refusal.code == "deadline"
            else CommandStatus.COMMAND_STATUS_REJECTED
        )
        return self._outcome(command, status, refusal.code, str(refusal))

    def _outcome(
        self,
        command: AdaptationCommand,
        status: CommandStatus.ValueType,
        code: str,
        reason: str,
    ) -> CommandOutcome:
        state = self._run.state
        outcome = CommandOutcome(
            command_id=command.command_id,
            status=status,
            timeline=state.timeline,
            code=code,
            reason=reason,
            step=state.step,
            epoch=state.epoch,
            command_type=command.command_type,
            training_run_id=self._run_id,
            issued_by=command.issued_by,
        )
        outcome.decided_at.FromNanoseconds(self._wall_ns())
        return outcome


def _delivery(record: CommandIntent | CommandDeferred) -> Delivery:
    return Delivery(
        AdaptationCommand.FromString(record.command),
        record.command,
        stream=record.origin.stream,
        entry_id=record.origin.entry_id,
        source=record.origin.source,
        digest=record.digest,
    )
