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
from dataclasses import replace
from typing import Any

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandAttempt,
    CommandIntent,
    CommandResult,
    CommandType,
    JournalRecord,
)
from tolaria_bus.tolaria.control.commands import (
    CHECKPOINT_FAILED,
    CommandRefused,
    Steerable,
)
from tolaria_bus.tolaria.control.emergency_commands import refuse_superseded
from tolaria_bus.tolaria.control.execution import Execution, journaled
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox, Outbound, in_order
from tolaria_bus.tolaria.control.mode import held
from tolaria_bus.tolaria.control.outcomes import FATAL, Outcomes
from tolaria_bus.tolaria.control.schedule import due_fence
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.ledger import Identity
from tolaria_bus.tolaria.recovery.rollback import describe
from tolaria_bus.tolaria.recovery.run_folder import RunFolder

NEVER = sys.maxsize
MAX_ATTEMPTS = 3
HELD_POLL_SECONDS = 0.5
"""A held run looks at the clock this often; a delivery or a stop request wakes it at once."""


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
        self.next_step = 0
        self._run = run
        self._folder = folder
        self._ledger = folder.ledger
        self._mailbox = mailbox
        self._outbound = outbound
        self._telemetry = telemetry
        self._wall_ns = wall_ns
        self._outcomes = Outcomes(run_id, run.state, wall_ns)
        self._execution = Execution(run, folder, outbound, telemetry, self._outcomes)
        self._waiting: list[Delivery] = []
        self._held_seconds = 0.0
        self._place = 0
        self._replay = deque(replay)
        self._replayed = restored
        self._telemetry.replaying = bool(self._replay)

    @property
    def applied(self) -> int:
        """Commands that took effect in this process."""
        return self._execution.applied

    @property
    def apart_seconds(self) -> float:
        """What the fence took in this process that isn't its own: holds, and commands' work."""
        return self._held_seconds + self._execution.work_seconds

    @property
    def contained(self) -> int:
        """Sequence of the last journal record whose effect the present state has."""
        return self._replayed if self._replay else self._folder.last_effect

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
        self._apply_deferred(epoch_ended)
        if not self._replay:
            self._apply_waiting(epoch_ended)
        if held(self._run.state.mode):
            self._run.stand_still()
        while held(self._run.state.mode) and not self._ending and not self._replay:
            began = time.perf_counter()
            self._mailbox.wait(HELD_POLL_SECONDS)
            self._held_seconds += time.perf_counter() - began
            self._apply_waiting(None)
        self.next_step = 0 if self._replay else self._next_due()

    @property
    def behind(self) -> bool:
        """Are journaled steps still being run again? No command is applied meanwhile."""
        return bool(self._replay)

    @property
    def cut_is_next(self) -> bool:
        """Is a rollback the first thing to be done again at this very fence?"""
        return (
            bool(self._replay)
            and self._replay[0].HasField("cut")
            and self._replay[0].step == self._run.state.step
        )

    def rewind(self, records: Iterable[JournalRecord], restored: int) -> None:
        """Begin a replay: after a rollback the state is at, or on the way to, its target.

        Args:
            records: To apply, each at its step; those of this step are applied at once.
            restored: The last record that the state contains.
        """
        self._replay = deque(records)
        self._replayed = restored
        self._telemetry.replaying = True
        self._apply_journaled()
        self._telemetry.replaying = self.behind
        # Also a fence that was due only on the way that is cut off.
        self.next_step = 0

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

    @property
    def _ending(self) -> bool:
        return bool(self._mailbox.stop_reason or self._run.stopping)

    # What the journal has

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

    def _apply_again(self, intent: CommandIntent) -> None:
        delivery = journaled(intent)
        command = delivery.command
        # Of this very entry: a command that was given up may have been sent again since.
        recorded = self._ledger.finished(intent.command_id, intent.origin, intent.digest)
        attempts = self._ledger.attempts(intent.command_id)
        if recorded is None and attempts >= MAX_ATTEMPTS:
            self._give_up(delivery, attempts)
            return
        if recorded is not None and recorded.outcome.code == FATAL:
            self._run.tried(command, failure=recorded.outcome.reason)
            return
        if recorded is not None and command.command_type == CommandType.COMMAND_CANCEL:
            # Its effect is in the ledger, which has it already.
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

    # What was put off to this fence

    def _apply_deferred(self, epoch_ended: int | None) -> None:
        if not self._execution.ready():
            return
        state = self._run.state
        for waiting in self._ledger.deferred():
            if waiting.at_epoch:
                due = epoch_ended is not None and waiting.at_epoch <= epoch_ended
            else:
                due = waiting.at_step <= state.step
            if not due:
                continue
            self._place += 1
            try:
                # Its entry was acknowledged when it was put off; this outcome finishes none.
                self._execution.attempt(journaled(waiting), self._place, finishes_entry=False)
            except JournalUnwritable as error:
                self._execution.block(error)
                return
            if self._replay:
                return

    def _next_due(self) -> int:
        if held(self._run.state.mode) or self._waiting or self._execution.blocked:
            return 0
        steps = [item.at_step for item in self._ledger.deferred() if not item.at_epoch]
        return min(steps, default=NEVER)

    # What the mailbox has

    def _apply_waiting(self, epoch_ended: int | None) -> None:
        deliveries = in_order([*self._waiting, *self._mailbox.take()])
        if not self._execution.ready():
            self._waiting = deliveries
            return
        self._waiting = []
        for index, delivery in enumerate(deliveries):
            if self._run.stopping or self._replay:
                # Not begun: the entries stay pending; behind a stop the next worker gets them.
                self._waiting = deliveries[index:]
                return
            try:
                self._receive(delivery, epoch_ended)
            except JournalUnwritable as error:
                # Nothing was applied. The entry stays unacknowledged and is tried again here.
                self._waiting = deliveries[index:]
                self._execution.block(error)
                return

    def _receive(self, delivery: Delivery, epoch_ended: int | None) -> None:
        command = delivery.command
        known = self._ledger.identify(
            command.command_id, delivery.digest, delivery.origin, resent=delivery.resent
        )
        if known is Identity.UNFINISHED:
            return  # Its RESULT waits for the journal, and its outcome with it.
        if known is not Identity.NEW:
            finished = self._ledger.finished(command.command_id)
            if known is Identity.REDELIVERY:
                finished = self._ledger.finished(command.command_id, delivery.origin)
            self._outbound.outcome(self._outcomes.known(command, known, finished), delivery)
            return
        try:
            refuse_superseded(
                command,
                delivery.entry_id,
                resumed_at=self._ledger.resumed_at,
                halted_at=self._ledger.halted_at,
                halted=self._run.state.mode.halted,
            )
            self._check_deadline(command)
            due = due_fence(command, self._run.state, epoch_ended)
            if due is not None:
                self._execution.defer(delivery, due)
                return
            self._execution.check(command)
        except CommandRefused as refusal:
            self._execution.finish(delivery, self._outcomes.refused(command, refusal))
            return
        self._place += 1
        self._execution.attempt(delivery, self._place)

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
