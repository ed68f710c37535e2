"""What may be done to a run between two steps: by a command, by the journal, by a bad loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from tolaria_bus.leyline import AdaptationCommand, Decision, EmergencyLevel, TimelineCut
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control import emergencies
from tolaria_bus.tolaria.control.checkpointing import Checkpointing
from tolaria_bus.tolaria.control.deadlines import Deadlines, Way, no_deadline
from tolaria_bus.tolaria.control.emergencies import Emergencies
from tolaria_bus.tolaria.control.features import FALLBACK, apply_fallback
from tolaria_bus.tolaria.control.guards import Guards
from tolaria_bus.tolaria.control.handshake import NO_ANSWER, Handshake
from tolaria_bus.tolaria.control.health import Health
from tolaria_bus.tolaria.control.observing import Observations
from tolaria_bus.tolaria.control.profiling import Profiling
from tolaria_bus.tolaria.control.seeds import SEED_FAILED, SeedWork
from tolaria_bus.tolaria.control.steerable import CommandRefused, Details
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.ledger import HALT
from tolaria_bus.tolaria.recovery.restore_points import Cadence, NoTarget, Target
from tolaria_bus.tolaria.recovery.rollback import FAST, FULL, Halt, Rollback, describe
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState
from tolaria_bus.tolaria.recovery.targets import Targets

if TYPE_CHECKING:
    from tolaria_bus.tolaria.control.fence import Fence


class Steering:
    """Changes the state of one run. Training thread only, at a fence.

    Attributes:
        state: What is steered.
        stopping: Why the loop ends at the present fence, or empty.
        guards: The breakers, the boundary's budget.
        emergencies: At which level the run is.
        checkpoints: Keeps states, on disk and in memory.
        health: Judges steps, and goes back where one was bad.
        cadence: At which steps to take a snapshot.
        fence: Knows which journal records the state contains; set once it is made.
        seeds: Does what is done to seeds; set once it is made.
        observations: What becomes of commands' effects; set once it is made.
        profiling: Records traces; set once it is made.
        handshake: Asks Tamiyo; set once it is made.
    """

    fence: Fence
    seeds: SeedWork
    observations: Observations
    profiling: Profiling
    handshake: Handshake

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder,
        settings: Settings,
        telemetry: Telemetry,
        *,
        job: str,
        deadline: Deadlines = no_deadline,
        saving: Callable[[], AbstractContextManager[None]] = nullcontext,
        server_ms: Callable[[], int | None] = lambda: None,
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
            server_ms=server_ms,
        )
        note = self.emergencies.note
        self.guards = Guards(state, folder, telemetry, boundary_ms=settings.boundary_ms, note=note)
        self._folder = folder
        self._telemetry = telemetry
        self.cadence = Cadence(
            settings.snapshot_every_steps, settings.snapshot_at_epochs, state.data.steps_per_epoch
        )
        self.checkpoints = Checkpointing(
            state,
            folder,
            settings,
            telemetry,
            self.guards,
            job=job,
            waiting=saving,
            contained=lambda: self.fence.recovering.contained,
            healthy=lambda: self.health.look(),
            check=lambda: self.health.check(),
            mark=self._mark_checkpoints,
            note=note,
        )
        snapshots = self.checkpoints.snapshots
        self._targets = Targets(
            state,
            folder,
            snapshots,
            self.cadence,
            settle=self.checkpoints.wait,
            clean_steps=settings.rollback_clean_steps,
            lr_factor=settings.rollback_lr_factor,
        )
        self._rollback = Rollback(state, folder, snapshots)
        self.health = Health(
            state,
            settings,
            telemetry,
            self._targets,
            behind=lambda: self.fence.recovering.behind,
            go_back=self.roll_back,
            note=self.emergencies.note,
            server_ms=server_ms,
        )
        self._deadline = deadline
        self._wall_ns = wall_ns
        self._way: Way | None = None
        self._way_to = 0  # The timeline that it leads to.

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

    def save_checkpoint(self, *, label: str = "", pin: bool = False) -> str:
        """Make the present state durable and wait: see :meth:`.checkpointing.Checkpointing.save`.

        Raises:
            CheckpointFailed: It could not be written.
        """
        return self.checkpoints.save(label=label, pin=pin)

    def make_halt_durable(self) -> Details:
        """The run is halted: see :meth:`.checkpointing.Checkpointing.save_halted`."""
        return self.checkpoints.save_halted()

    def stand_still(self) -> None:
        """No step comes for now: a checkpoint that waits for a loss is written without it."""
        self.checkpoints.stand_still()

    # Rollbacks

    def rollback_target(self, target_step: int | None, target_epoch: int | None) -> Target:
        """The state that a rollback goes to.

        Raises:
            CommandRefused: ``no_checkpoint``.
        """
        self.health.look()
        try:
            if target_step is not None:
                return self._targets.at_step(target_step)
            if target_epoch is not None:
                return self._targets.at_epoch(target_epoch)
            return self._targets.newest()
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
        halt: Halt | None = None,
    ) -> Details:
        """Go back to an earlier state on a new timeline and say which commands that undid.

        From memory the run is there on return. By the full way it may have steps to make again:
        then the fence is :attr:`~.recovering.Recovering.behind` until it is there.

        Args:
            target: Where to.
            replay_data: Draw the batches since the target again; else they are skipped.
            lr_factor: Multiplies every learning rate of the target.
            cause: ``command``, ``not_finite``, ``spike``, ``accuracy``.
            command_id: The command that asked for it.
            tier: ``full``: from a checkpoint, whatever is in memory.
            halt: The run is halted there.

        Returns:
            Details for the outcome.

        Raises:
            CommandRefused: ``no_checkpoint``.
            JournalUnwritable: Nothing was changed.
        """
        way = Way(self._deadline, self._wall_ns)
        way.enters("validate")
        try:
            source = self._rollback.source(target, tier=tier)
            if source.tier == FULL:
                way.takes_longer()
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
            way.ends()
            raise CommandRefused("no_checkpoint", str(error)) from error
        except BaseException:
            way.ends()
            raise
        self.health.forget()
        way.enters("restore")
        records = self._rollback.restore(source, cut)
        way.enters("replay" if source.tier == FULL else "resume")
        self._way, self._way_to = way, cut.timeline
        self.fence.rewind(records, source.sequence)
        self.fence.recovering.tell_undone(cut)
        self._mark_checkpoints()
        return describe(cut.cut, cut.timeline)

    def apply_cut(self, cut: TimelineCut, timeline: int) -> None:
        """Apply a journaled rollback to the state that it went to."""
        way = None
        # On the way from a checkpoint there may be the cuts of earlier rollbacks.
        if timeline == self._way_to:
            way, self._way = self._way, None
        if way is not None and cut.tier == FULL:
            way.enters("resume")
        self._rollback.apply(cut, timeline)
        self.emergencies.look()
        self.handshake.forget()
        if way is None:
            return
        way.ends()
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
        elif decision.kind == NO_ANSWER:
            self.handshake.apply(decision)
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
            self.fence.recovering.tell_undone(cut)
        self._mark_checkpoints()

    def _mark_checkpoints(self) -> None:
        try:
            self._rollback.mark_checkpoints()
        except OSError as error:
            self._telemetry.event("checkpoint_not_marked", str(error))
