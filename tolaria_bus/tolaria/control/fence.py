"""The fence between two optimizer steps: the only place where a run is changed from outside.

The life of a command, each step durable before the next:

1. Judge, once: its id, its deadline, the fence it names, its legality (:mod:`.judging`).
2. Journal INTENT (all its bytes, the step, its place in the fence) and ATTEMPT in one write.
3. Apply it.
4. Journal RESULT.
5. Hand out the outcome; the bus side publishes it and finishes the entry in one atomic script.

A process may die anywhere in between. On the way back the journal's live records are applied again
at their steps, before anything new (:mod:`.recovering`), and must come to the recorded RESULT. What
is redelivered is answered from the ledger. So the effect is there exactly once, and so is its
outcome.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable

from tolaria_bus.leyline import (
    AdaptationCommand,
    JournalRecord,
)
from tolaria_bus.tolaria.control.commands import (
    CommandRefused,
    Steerable,
)
from tolaria_bus.tolaria.control.emergency_commands import is_halt, refuse_superseded
from tolaria_bus.tolaria.control.execution import Execution, journaled
from tolaria_bus.tolaria.control.judging import judging
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox, Outbound, in_order
from tolaria_bus.tolaria.control.mode import held
from tolaria_bus.tolaria.control.outcomes import Outcomes
from tolaria_bus.tolaria.control.recovering import Recovering
from tolaria_bus.tolaria.control.schedule import due_fence
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.ledger import Identity
from tolaria_bus.tolaria.recovery.run_folder import RunFolder

NEVER = sys.maxsize
UNWANTED_SECONDS = 0.002
"""What a fence spends on answers that nobody waits for: a flood of them must not stop training."""
HELD_POLL_SECONDS = 0.5
"""A held run looks at the clock this often; a delivery or a stop request wakes it at once."""


class Fence:
    """Takes commands from the mailbox and applies them exactly once. Training thread only.

    Attributes:
        next_step: The next step at which the fence must be opened though nothing waits in the
            mailbox; the trainer compares it at every step.
        recovering: Does again what the journal has.
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
        on_hold: Callable[[bool], None] = lambda waits: None,
    ) -> None:
        self.next_step = 0
        self._on_hold = on_hold
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
        self._unwanted: deque[tuple[Delivery, CommandRefused]] = deque()
        self._held_seconds = 0.0
        self._place = 0
        self.recovering = Recovering(
            run, folder, outbound, telemetry, self._outcomes, self._execution
        )
        self.recovering.begin(replay, restored)

    @property
    def applied(self) -> int:
        """Commands that took effect in this process."""
        return self._execution.applied

    @property
    def apart_seconds(self) -> float:
        """What the fence took in this process that isn't its own: holds, and commands' work."""
        return self._held_seconds + self._execution.work_seconds

    def rewind(self, records: Iterable[JournalRecord], restored: int) -> None:
        """Begin a replay: after a rollback the state is at, or on the way to, its target.

        Args:
            records: To apply, each at its step; those of this step are applied at once.
            restored: The last record that the state contains.
        """
        self.recovering.begin(records, restored)
        self.recovering.apply()
        self._telemetry.replaying = self.recovering.behind
        # Also a fence that was due only on the way that is cut off.
        self.next_step = 0

    def open(self, epoch_ended: int | None = None) -> None:
        """Apply what is due here; while the run is held, stay until it is resumed or stopped.

        Args:
            epoch_ended: The epoch that has just been completed (1, 2, ...), at an epoch fence.

        Raises:
            Divergence: The journal and this run don't agree.
        """
        self._place = 0
        recovering = self.recovering
        recovering.apply()
        if recovering.behind:
            self.next_step = recovering.next_step
            return
        self._telemetry.replaying = False
        self._apply_deferred(epoch_ended)
        if not recovering.behind:
            self._apply_waiting(epoch_ended)
            self._refuse_unwanted()
        if held(self._run.state.mode):
            self._run.stand_still()
        while held(self._run.state.mode) and not self._ending and not recovering.behind:
            began = time.perf_counter()
            if not self._unwanted:
                self._on_hold(True)
                self._mailbox.wait(HELD_POLL_SECONDS)
                self._on_hold(False)
            self._held_seconds += time.perf_counter() - began
            self._apply_waiting(None)
            self._refuse_unwanted()
        self.next_step = 0 if recovering.behind else self._next_due()

    @property
    def _ending(self) -> bool:
        return bool(self._mailbox.stop_reason or self._run.stopping)

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
            if self.recovering.behind:
                return

    def _next_due(self) -> int:
        waiting = self._waiting or self._unwanted
        if held(self._run.state.mode) or waiting or self._execution.blocked:
            return 0
        steps = [item.at_step for item in self._ledger.deferred() if not item.at_epoch]
        return min(steps, default=NEVER)

    # What the mailbox has

    def _apply_waiting(self, epoch_ended: int | None) -> None:
        deliveries = in_order([*self._waiting, *self._mailbox.take()])
        if not self._execution.ready():
            self._waiting = deliveries
            self._stop_for_halts()
            return
        self._waiting = []
        for index, delivery in enumerate(deliveries):
            if self._run.stopping or self.recovering.behind:
                # Not begun: the entries stay pending; behind a stop the next worker gets them.
                self._waiting = deliveries[index:]
                return
            try:
                self._receive(delivery, epoch_ended)
            except JournalUnwritable as error:
                # Nothing was applied. The entry stays unacknowledged and is tried again here.
                self._waiting = deliveries[index:]
                self._execution.block(error)
                self._stop_for_halts()
                return

    def _stop_for_halts(self) -> None:
        """A HALT that waits for the journal stops the run all the same, and is done when it can."""
        for delivery in self._waiting:
            command = delivery.command
            if not is_halt(command) or self._identity(delivery) is not Identity.NEW:
                continue
            try:
                self._check_superseded(delivery)
            except CommandRefused:
                continue
            self._run.emergencies.stand(command)

    def _receive(self, delivery: Delivery, epoch_ended: int | None) -> None:
        command = delivery.command
        known = self._identity(delivery)
        if known is Identity.UNFINISHED:
            return  # Its RESULT waits for the journal, and its outcome with it.
        if known is not Identity.NEW:
            finished = self._ledger.finished(command.command_id)
            if known is Identity.REDELIVERY:
                finished = self._ledger.finished(command.command_id, delivery.origin)
            self._outbound.outcome(self._outcomes.known(command, known, finished), delivery)
            return
        try:
            with judging(command, self._telemetry):
                unwanted = self._run.handshake.judge(delivery)
                if unwanted is not None:
                    self._unwanted.append((delivery, CommandRefused(*unwanted)))
                    return
                self._check_superseded(delivery)
                self._check_deadline(command)
                due = due_fence(command, self._run.state, epoch_ended)
                if due is None:
                    self._execution.check(command)
        except CommandRefused as refusal:
            self._execution.finish(delivery, self._outcomes.refused(command, refusal))
            self._run.handshake.answered(command)
            return
        if due is not None:
            self._execution.defer(delivery, due)
            self._run.handshake.answered(command)
            return
        self._place += 1
        self._execution.attempt(delivery, self._place)

    def _refuse_unwanted(self) -> None:
        """Answer what can't be taken as an answer of Tamiyo's, as far as there is time now.

        It isn't journaled: should it come again, it is judged again.
        """
        end = time.perf_counter() + UNWANTED_SECONDS
        while self._unwanted and time.perf_counter() < end:
            delivery, refusal = self._unwanted.popleft()
            outcome = self._outcomes.refused(delivery.command, refusal)
            outcome.stream, outcome.entry_id = delivery.stream, delivery.entry_id
            self._outbound.outcome(outcome, delivery)

    def _identity(self, delivery: Delivery) -> Identity:
        return self._ledger.identify(
            delivery.command.command_id,
            delivery.digest,
            delivery.origin,
            resent=delivery.resent,
        )

    def _check_superseded(self, delivery: Delivery) -> None:
        refuse_superseded(
            delivery.command,
            delivery.entry_id,
            self._ledger,
            self._run.state.mode,
            now_ms=self._mailbox.server_ms(),
        )

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
