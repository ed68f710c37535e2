"""What may be done to a run between two steps: by a command, by the journal, by a bad loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final, Protocol

from tolaria_bus.leyline import AdaptationCommand, Decision, EmergencyLevel, TimelineCut
from tolaria_bus.safety import emergency
from tolaria_bus.safety.breakers import CHECKPOINT
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control import emergencies
from tolaria_bus.tolaria.control.emergencies import Emergencies
from tolaria_bus.tolaria.control.features import FALLBACK, apply_fallback
from tolaria_bus.tolaria.control.guards import Guards
from tolaria_bus.tolaria.control.observing import Observations
from tolaria_bus.tolaria.control.seeds import SEED_FAILED, SeedWork
from tolaria_bus.tolaria.control.steerable import CommandRefused, Details
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.step import LossReading, Verdict
from tolaria_bus.tolaria.recovery.checkpoint_info import parse_name
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointFailed
from tolaria_bus.tolaria.recovery.restore_points import (
    Cadence,
    NoTarget,
    Target,
    newest_validated,
)
from tolaria_bus.tolaria.recovery.rollback import (
    ACCURACY,
    FAST,
    FULL,
    HALT,
    Remedy,
    Rollback,
    describe,
)
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.saving import Saving
from tolaria_bus.tolaria.recovery.snapshots import Snapshots
from tolaria_bus.tolaria.recovery.state import TrainingState

if TYPE_CHECKING:
    from tolaria_bus.tolaria.control.fence import Fence

FAST_SECONDS: Final = 0.5
"""A rollback from memory must be over by then: validate 150 ms, restore 250, resume 100."""
FULL_SECONDS: Final = 12.0
"""And one from a checkpoint."""
LEAST_COLLAPSE: Final = 0.1
"""An accuracy that fell by less is no collapse, whatever share of the best it is."""


class Clears(Protocol):
    """A deadline that was set."""

    def clear(self) -> None:
        """What it was set for is over."""


Deadlines = Callable[[str, float], Clears]
"""Says to whoever watches that something must be over within so many seconds."""


class _NoDeadline:
    def clear(self) -> None:
        pass


def _no_deadline(name: str, seconds: float) -> Clears:
    del name, seconds
    return _NoDeadline()


class Steering:
    """Changes the state of one run. Training thread only, at a fence.

    Attributes:
        state: What is steered.
        stopping: Why the loop ends at the present fence, or empty.
        guards: The breakers, the boundary's budget.
        emergencies: At which level the run is.
        cadence: At which steps to take a snapshot.
        fence: Knows which journal records the state contains; set once it is made.
        seeds: Does what is done to seeds; set once it is made.
        observations: What becomes of commands' effects; set once it is made.
    """

    fence: Fence
    seeds: SeedWork
    observations: Observations

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder,
        settings: Settings,
        telemetry: Telemetry,
        *,
        job: str,
        deadline: Deadlines = _no_deadline,
        saving: Callable[[], AbstractContextManager[None]] = nullcontext,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.state = state
        self.stopping = ""
        self.emergencies = Emergencies(
            state,
            folder,
            telemetry,
            clean_steps=settings.emergency_clean_steps,
            wall_ns=wall_ns,
        )
        self.guards = Guards(
            state,
            folder,
            telemetry,
            boundary_ms=settings.boundary_ms,
            note=self.emergencies.note,
        )
        self._folder = folder
        self._settings = settings
        self._telemetry = telemetry
        self._snapshots = Snapshots(
            keep=settings.snapshot_keep,
            max_bytes=settings.snapshot_memory_mb * 1_000_000,
            pinned=next(state.model.parameters()).is_cuda,
        )
        self.cadence = Cadence(
            settings.snapshot_every_steps, settings.snapshot_at_epochs, state.data.steps_per_epoch
        )
        self._saving = Saving(
            state,
            folder,
            job=job,
            on_saved=self._saved,
            on_failed=self._not_saved,
            waiting=saving,
            writer=settings.checkpoint_writer,
        )
        self._rollback = Rollback(
            state,
            folder,
            self._snapshots,
            self.cadence,
            settle=self._saving.wait,
            clean_steps=settings.rollback_clean_steps,
            lr_factor=settings.rollback_lr_factor,
        )
        self._deadline = deadline
        self._wall_ns = wall_ns
        self._way: _Way | None = None
        self._bad: LossReading | None = None

    def stop(self, reason: str) -> None:
        """End the run at this fence; the first reason stays."""
        self.stopping = self.stopping or reason

    def admit(self, command: AdaptationCommand) -> None:
        """Refuse a new command whose breaker is open: ``breaker_open``."""
        self.guards.admit(command)

    def tried(self, command: AdaptationCommand, *, failure: str) -> None:
        """Tell the breakers how a command went."""
        self.guards.tried(command, failure=failure)

    def announce(
        self,
        level: EmergencyLevel.ValueType,
        reason: str,
        scope: str,
        runs: str,
        *,
        command_id: str,
    ) -> None:
        """Broadcast an emergency signal. The same command's, if it is sent again, is the same."""
        self._telemetry.emergency(level, reason, scope=scope, runs=runs, command_id=command_id)

    # Checkpoints

    def save_checkpoint(self, *, label: str = "", pin: bool = False) -> str:
        """Make the present state durable and wait; the last good one if this one isn't healthy.

        Raises:
            CheckpointFailed: It could not be written.
        """
        if self._bad is None:
            self._bad = self._bad_loss()
        if self._bad is None:
            return self._saving.now(self.fence.contained, label=label, pin=pin)
        good = self._snapshots.newest(newest_validated(self.state.last_loss_step))
        if good is not None:
            return self._saving.store(good.tensors, good.meta, good.sequence, label=label, pin=pin)
        return self._newest_checkpoint()

    def make_halt_durable(self) -> Details:
        """The run is halted: make its newest good state durable, and tell.

        A disk that can't take it stops no HALT: the journal has all that is needed.
        """
        state, details = self.state, Details()
        try:
            name = self.save_checkpoint(label="halt")
        except CheckpointFailed as error:
            details["checkpoint_failed"] = kept = str(error)
        else:
            details["checkpoint"] = name
            if name:
                details["checkpoint_step"] = parse_name(name)[0]
            kept = f"{name} is durable" if name else "there is no checkpoint"
        self._telemetry.alert(
            "halted",
            f"halted at step {state.step}: {state.mode.reason}; {kept}; RESUME goes on",
            by=state.mode.by,
            reason=state.mode.reason,
            **details,
        )
        return details

    def save_later(self) -> None:
        """Copy the present state and write it behind the training, if it is healthy.

        A disk that refuses again and again isn't asked at each epoch: its breaker is open.
        """
        if self.check_health() and self.guards.allows(CHECKPOINT):
            self._saving.later(self.fence.contained)

    @property
    def holding_checkpoint(self) -> bool:
        """One is copied and waits for the next loss."""
        return self._saving.holding

    def judge_checkpoint(self) -> None:
        """Write the checkpoint that waits, if the newest loss shows that it is good."""
        self._saving.judge()

    def stand_still(self) -> None:
        """No step comes for now: a checkpoint that waits for a loss is written without it."""
        if self._bad is None:
            self._bad = self._bad_loss()
        if self._bad is None:
            self._saving.release()

    def save_at_end(self) -> str:
        """Make the last state durable; without that the next start goes on from the one before."""
        try:
            return self.save_checkpoint(label="end")
        except CheckpointFailed as error:
            self._telemetry.event("checkpoint_failed", str(error))
            return self._newest_checkpoint()

    def close(self, seconds: float) -> None:
        """Finish the checkpoints that were begun, within so many seconds."""
        self._saving.close(seconds)

    def _saved(self, name: str) -> None:
        self._telemetry.event("checkpoint", f"{name} is durable")
        self.guards.succeeded(CHECKPOINT)
        step, _, sequence = parse_name(name)
        if not self._folder.live.is_live(sequence, step):
            # A rollback undid it while it was being written.
            self._mark_checkpoints()

    def _not_saved(self, name: str, why: str) -> None:
        self._telemetry.alert("checkpoint_failed", why, checkpoint=name)
        self.emergencies.note(emergency.CHECKPOINT_FAILED, why)
        self.guards.failed(CHECKPOINT, why)

    def _newest_checkpoint(self) -> str:
        self._saving.wait()
        live = self._folder.live_checkpoints()
        return live[-1].name if live else ""

    # Rollbacks

    def take_snapshot(self) -> None:
        """Copy the present state into memory, to go back to should it prove good."""
        if not self._snapshots.refused and not self._snapshots.take(
            self.state, self.fence.contained
        ):
            self._telemetry.alert("snapshots_off", self._snapshots.refused)

    def rollback_target(self, target_step: int | None, target_epoch: int | None) -> Target:
        """The state that a rollback goes to.

        Raises:
            CommandRefused: ``no_checkpoint``.
        """
        if self._bad is None:
            self._bad = self._bad_loss()
        try:
            if target_step is not None:
                return self._rollback.at_step(target_step)
            if target_epoch is not None:
                return self._rollback.at_epoch(target_epoch)
            return self._rollback.newest()
        except NoTarget as error:
            raise CommandRefused("no_checkpoint", str(error)) from error

    def roll_back(
        self,
        target: Target,
        *,
        replay_data: bool,
        lr_factor: float,
        cause: str,
        command_id: str,
        tier: str = FAST,
        halt: str = "",
    ) -> Details:
        """Go back to an earlier state on a new timeline and say which commands that undid.

        From memory the run is there on return. By the full way it may have steps to make again:
        then the fence is :attr:`~.fence.Fence.behind` until it is there.

        Args:
            target: Where to.
            replay_data: Draw the batches since the target again; else they are skipped.
            lr_factor: Multiplies every learning rate of the target.
            cause: ``command``, ``not_finite``, ``spike``, ``accuracy``.
            command_id: The command that asked for it.
            tier: ``full``: from a checkpoint, whatever is in memory.
            halt: Why the run is halted there, or empty.

        Returns:
            Details for the outcome.

        Raises:
            CommandRefused: ``no_checkpoint``.
            JournalUnwritable: Nothing was changed.
        """
        way = _Way(self._deadline("rollback", FAST_SECONDS), self._wall_ns)
        way.enters("validate")
        try:
            source = self._rollback.source(target, tier=tier)
            if source.tier == FULL:
                way.deadline.clear()
                way.deadline = self._deadline("rollback", FULL_SECONDS)
            cut = self._rollback.write_cut(
                target,
                source,
                replay_data=replay_data,
                lr_factor=lr_factor,
                cause=cause,
                command_id=command_id,
                halt=halt,
            )
        except NoTarget as error:
            way.deadline.clear()
            raise CommandRefused("no_checkpoint", str(error)) from error
        except BaseException:
            way.deadline.clear()
            raise
        self._bad = None
        way.enters("restore")
        records = self._rollback.restore(source, cut)
        way.enters("replay" if source.tier == FULL else "resume")
        self._way = way
        self.fence.rewind(records, source.sequence)
        self.fence.tell_undone(cut)
        self._mark_checkpoints()
        return describe(cut.cut, cut.timeline)

    def apply_cut(self, cut: TimelineCut, timeline: int) -> None:
        """Apply a journaled rollback to the state that it went to."""
        way, self._way = self._way, None
        if way is not None and cut.tier == FULL:
            way.enters("resume")
        self._rollback.apply(cut, timeline)
        if way is None:
            return
        way.deadline.clear()
        way.enters("")
        # Its steps are run again, the rollback itself is not.
        self._telemetry.replaying = False
        details = describe(cut, timeline)
        self._telemetry.event("rollback", f"back to step {cut.target_step}", **details)
        self._telemetry.spans("tolaria.rollback", way.marks, tier=cut.tier, cause=cut.cause)

    def apply_decision(self, decision: Decision) -> None:
        """Apply a choice of the trainer's own."""
        self.guards.apply(decision)
        if decision.kind == FALLBACK:
            apply_fallback(decision, self.state)
        elif decision.kind == HALT:
            self.emergencies.halt(decision.reason)
            self.make_halt_durable()
        elif decision.kind == emergencies.DECISION:
            self.emergencies.apply(decision)
        elif decision.kind == SEED_FAILED:
            self.seeds.apply(decision)

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

    def finish_cuts(self) -> None:
        """Do what a process that died in a rollback may have left: marks, outcomes."""
        for cut in self._folder.cuts():
            self.fence.tell_undone(cut)
        self._mark_checkpoints()

    def _mark_checkpoints(self) -> None:
        try:
            self._rollback.mark_checkpoints()
        except OSError as error:
            self._telemetry.event("checkpoint_not_marked", str(error))

    # The health of a step

    def check_health(self) -> bool:
        """Wait for the newest loss; if it is bad, go back, and say so with False."""
        bad = self._bad_loss()
        if bad is not None:
            self.recover_from(bad)
        return bad is None

    def settle(self) -> None:
        """Go back if a bad loss was found at the fence that has just been open."""
        self.emergencies.look()
        bad, self._bad = self._bad, None
        if bad is not None:
            self.recover_from(bad)

    def recover_from(self, bad: LossReading) -> None:
        """A step went wrong: go back to a state that was good; halt if that doesn't help."""
        cause = bad.verdict.value
        self._heal(
            self._rollback.remedy(cause, bad.step),
            "loss_" + cause,
            f"loss {bad.loss:.6g} at step {bad.step}",
            cause=cause,
            tier=FAST,
            loss=bad.loss,
            running_mean=bad.mean,
        )

    def check_accuracy(self, accuracy: float | None) -> bool:
        """Compare a validation's accuracy with the best; if it collapsed, go back, and say False.

        What was decided when the steps that are run again now were first made isn't decided anew.

        Args:
            accuracy: 0 to 1; ``None``: not measured.
        """
        state = self.state
        if accuracy is None:
            return True
        factor, best = self._settings.accuracy_collapse_factor, state.best_accuracy
        collapsed = accuracy < factor * best and best - accuracy >= LEAST_COLLAPSE
        if not collapsed or self.fence.behind:
            state.best_accuracy = max(best, accuracy)
            return True
        self._heal(
            self._rollback.remedy(ACCURACY, state.step),
            "accuracy_collapsed",
            f"accuracy {accuracy:.4g} at step {state.step}, it was {best:.4g}",
            cause=ACCURACY,
            tier=FULL,
            accuracy=accuracy,
            best=best,
        )
        return False

    def _heal(
        self, remedy: Remedy, name: str, what: str, *, cause: str, tier: str, **facts: float
    ) -> None:
        settings, step = self._settings, remedy.target.step
        self._telemetry.alert(
            name,
            f"{what}: going back to step {step}",
            critical=True,
            attempt=remedy.attempt,
            target_step=step,
            **facts,
        )
        halt = ""
        if remedy.attempt >= settings.rollback_limit:
            halt = f"{cause}: {remedy.attempt} rollbacks, the last to step {step}, didn't help"
            self._telemetry.emergency(emergency.HALT, halt, cause=emergency.ROLLBACK_FAILED)
        else:
            self.emergencies.note(name, what, with_cut=True)
        self.roll_back(
            remedy.target,
            replay_data=settings.rollback_data == "replay" and settings.rollback_lr_factor < 1.0,
            lr_factor=remedy.lr_factor,
            cause=cause,
            command_id="",
            tier=tier,
            halt=halt,
        )

    def _bad_loss(self) -> LossReading | None:
        reading = self.state.watch.flush()
        if reading is None:
            return None
        if reading.verdict is not Verdict.OK:
            return reading
        self.state.note(reading)
        self._saving.judge()
        return None


class _Way:
    """A rollback under way: its deadline, and when each of its phases began."""

    def __init__(self, deadline: Clears, wall_ns: Callable[[], int]) -> None:
        self.deadline = deadline
        self.marks: list[tuple[str, int]] = []
        self._wall_ns = wall_ns

    def enters(self, phase: str) -> None:
        """A phase begins; an empty name: all is over."""
        self.marks.append((phase, self._wall_ns()))
