"""What may be done to a run between two steps: by a command, by the journal, by a bad loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tolaria_bus.leyline import (
    AdaptationCommand,
    Decision,
    EmergencyLevel,
    JournalRecord,
    TimelineCut,
)
from tolaria_bus.safety.breakers import CHECKPOINT
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control.commands import CommandRefused, Details
from tolaria_bus.tolaria.control.features import FALLBACK, apply_fallback
from tolaria_bus.tolaria.control.guards import Guards
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.step import LossReading, Verdict
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointFailed
from tolaria_bus.tolaria.recovery.rollback import NoTarget, Rollback, describe
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.saving import Saving
from tolaria_bus.tolaria.recovery.state import TrainingState

if TYPE_CHECKING:
    from tolaria_bus.tolaria.control.fence import Fence


class Steering:
    """Changes the state of one run. Training thread only, at a fence.

    Attributes:
        state: What is steered.
        stopping: Why the loop ends at the present fence, or empty.
        guards: The breakers, the boundary's budget.
        fence: Knows which journal records the state contains; set once it is made.
    """

    fence: Fence

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder,
        settings: Settings,
        telemetry: Telemetry,
        *,
        job: str,
    ) -> None:
        self.state = state
        self.stopping = ""
        self.guards = Guards(state, folder, telemetry, boundary_ms=settings.boundary_ms)
        self._folder = folder
        self._settings = settings
        self._telemetry = telemetry
        self._rollback = Rollback(state, folder)
        self._saving = Saving(
            state,
            folder,
            job=job,
            on_saved=self._saved,
            on_failed=self._not_saved,
        )

    def stop(self, reason: str) -> None:
        """End the run at this fence; the first reason stays."""
        self.stopping = self.stopping or reason

    def admit(self, command: AdaptationCommand) -> None:
        """Refuse a new command whose breaker is open: ``breaker_open``."""
        self.guards.admit(command)

    def tried(self, command: AdaptationCommand, *, failure: str) -> None:
        """Tell the breakers how a command went."""
        self.guards.tried(command, failure=failure)

    def announce(self, level: EmergencyLevel.ValueType, reason: str, scope: str, runs: str) -> None:
        """Broadcast an emergency signal."""
        self._telemetry.emergency(level, reason, scope=scope, runs=runs)

    # Checkpoints

    def save_checkpoint(self, *, label: str = "", pin: bool = False) -> str:
        """Make the present state durable and wait; the last good one if this one isn't healthy.

        Raises:
            CheckpointFailed: It could not be written.
        """
        if self._bad_loss() is not None:
            self._saving.wait()
            return self._rollback.target()
        return self._saving.now(self.fence.contained, label=label, pin=pin)

    def save_later(self) -> None:
        """Copy the present state and write it behind the training, if it is healthy.

        A disk that refuses again and again isn't asked at each epoch: its breaker is open.
        """
        if self.check_health() and self.guards.allows(CHECKPOINT):
            self._saving.later(self.fence.contained)

    def save_at_end(self) -> str:
        """Make the last state durable; without that the next start goes on from the one before."""
        try:
            return self.save_checkpoint(label="end")
        except CheckpointFailed as error:
            self._telemetry.event("checkpoint_failed", str(error))
            return self._rollback.target()

    def close(self, seconds: float) -> None:
        """Finish the checkpoints that were begun, within so many seconds."""
        self._saving.close(seconds)

    def _saved(self, name: str) -> None:
        self._telemetry.event("checkpoint", f"{name} is durable")
        self.guards.succeeded(CHECKPOINT)

    def _not_saved(self, name: str, why: str) -> None:
        self._telemetry.alert("checkpoint_failed", why, checkpoint=name)
        self.guards.failed(CHECKPOINT, why)

    # Rollbacks

    def rollback_target(self, target_step: int | None, target_epoch: int | None) -> str:
        """The checkpoint that a rollback goes to.

        Raises:
            CommandRefused: ``no_checkpoint``.
        """
        self._saving.wait()
        try:
            return self._rollback.target(target_step, target_epoch)
        except NoTarget as error:
            raise CommandRefused("no_checkpoint", str(error)) from error

    def roll_back(
        self, checkpoint: str, *, replay_data: bool, lr_factor: float, cause: str, command_id: str
    ) -> Details:
        """Go back to a checkpoint on a new timeline and say which commands that undid."""
        self._saving.wait()
        cut = self._rollback.go(
            checkpoint,
            replay_data=replay_data,
            lr_factor=lr_factor,
            cause=cause,
            command_id=command_id,
        )
        self.fence.tell_undone(cut)
        details = describe(cut, self.state.timeline)
        self._telemetry.event("rollback", f"back to step {cut.target_step}", **details)
        return details

    def apply_cut(self, cut: TimelineCut, timeline: int) -> None:
        """Apply a journaled rollback to the restored checkpoint."""
        self._rollback.apply(cut, timeline)

    def apply_decision(self, decision: Decision) -> None:
        """Apply a choice of the trainer's own."""
        self.guards.apply(decision)
        if decision.kind == FALLBACK:
            apply_fallback(decision, self.state)
        if decision.kind == "halt":
            mode = self.state.mode
            mode.halted = mode.conservative = True
            mode.reason, mode.by = decision.reason, "tolaria"

    # The health of the whole

    def check_parts(self) -> None:
        """Check that model, optimizer and learning rates are of one structure; ~1 µs a parameter.

        Raises:
            RuntimeError: They have come apart: a fault of the trainer or of the job's own code.
        """
        state = self.state
        present = {id(parameter) for parameter in state.model.parameters()}
        for group in state.optimizer.param_groups:
            if any(id(parameter) not in present for parameter in group["params"]):
                raise RuntimeError(
                    f"optimizer group {group['name']} has parameters that the model has no more"
                )
        if astray := set(state.optimizer.group_names()) ^ state.learning_rate.rates().keys():
            raise RuntimeError(f"groups {sorted(astray)} have no learning rate, or no parameters")

    # The health of a step

    def check_health(self) -> bool:
        """Wait for the newest loss; if it is bad, go back, and say so with False."""
        bad = self._bad_loss()
        if bad is not None:
            self.recover_from(bad)
        return bad is None

    def recover_from(self, bad: LossReading) -> None:
        """A step went wrong: go back to the last good checkpoint; halt if that doesn't help."""
        cause = bad.verdict.value
        self._saving.wait()
        target = self._rollback.target()
        again = self._rollback.automatic_count(target, cause) + 1
        self._telemetry.alert(
            "loss_" + cause,
            f"loss {bad.loss:.6g} at step {bad.step}: going back to {target}",
            critical=True,
            loss=bad.loss,
            running_mean=bad.mean,
            attempt=again,
        )
        self.roll_back(
            target,
            replay_data=False,
            lr_factor=self._settings.rollback_lr_factor**again,
            cause=cause,
            command_id="",
        )
        if again >= self._settings.rollback_limit:
            self._halt(f"{cause}: {again} rollbacks to {target} didn't help")

    def _bad_loss(self) -> LossReading | None:
        reading = self.state.watch.flush()
        if reading is None:
            return None
        self.state.note(reading)
        return None if reading.verdict is Verdict.OK else reading

    def _halt(self, reason: str) -> None:
        state = self.state
        decision = Decision(kind="halt", reason=reason)
        self._folder.write(
            JournalRecord(
                timeline=state.timeline, step=state.step, epoch=state.epoch, decision=decision
            )
        )
        self.apply_decision(decision)
        self._telemetry.emergency(EmergencyLevel.EMERGENCY_LEVEL_HALT, reason)
        self.fence.next_step = 0
