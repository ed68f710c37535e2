"""The trainer: the loop, its two fences, and what a command may do to it.

Knows no Redis and no asyncio. It meets the outside through a mailbox (in) and an outbound (out)
and runs on one thread, its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tolaria_bus.leyline import JournalRecord, RunStopped
from tolaria_bus.safety import Phase, Signals
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control.epoch_end import EpochEnd
from tolaria_bus.tolaria.control.features import settle_fallbacks, tell_features, tell_prefetch_off
from tolaria_bus.tolaria.control.fence import Fence
from tolaria_bus.tolaria.control.gradients import ToldGradients
from tolaria_bus.tolaria.control.handshake import Handshake
from tolaria_bus.tolaria.control.mailbox import Mailbox, Outbound
from tolaria_bus.tolaria.control.mode import held, mode_name
from tolaria_bus.tolaria.control.observing import Observations
from tolaria_bus.tolaria.control.outcomes import Outcomes
from tolaria_bus.tolaria.control.phase_metrics import PhaseMetrics
from tolaria_bus.tolaria.control.profiling import Profiling
from tolaria_bus.tolaria.control.reporting import Reporting
from tolaria_bus.tolaria.control.retelling import tell_newest_answer
from tolaria_bus.tolaria.control.seeds import SeedWork
from tolaria_bus.tolaria.control.standing import Standing
from tolaria_bus.tolaria.control.steering import Steering
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.control.validating import Validating
from tolaria_bus.tolaria.engine import phases
from tolaria_bus.tolaria.engine.job import Job
from tolaria_bus.tolaria.engine.loss_watch import Verdict
from tolaria_bus.tolaria.engine.phases import PhaseClock
from tolaria_bus.tolaria.engine.prefetch import PrefetchedBatches, feature
from tolaria_bus.tolaria.engine.side import SideTraining
from tolaria_bus.tolaria.engine.step import TrainStep
from tolaria_bus.tolaria.recovery.profile_folder import ProfileFolder
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.weights import weights_sha256
from tolaria_bus.tolaria.resuming import resume
from tolaria_bus.tolaria.start import (
    fresh_state,
    pick_device,
    plan_length,
    step_options,
    task_gradients,
)
from tolaria_bus.tolaria.summary import Progress, RunSummary


class Trainer:
    """Trains one run from where its folder says it is to its end.

    Args:
        job: What to train.
        settings: How.
        run: The run's id.
        folder: Where it lives on disk; opened by the caller, who also closes it.
        mailbox: What comes in.
        outbound: What goes out.
        signals: Where a supervisor sees steps and phases; nobody looks if not given.

    Attributes:
        state: Everything that must survive.
    """

    def __init__(
        self,
        job: Job,
        settings: Settings,
        run: str,
        folder: RunFolder,
        mailbox: Mailbox,
        outbound: Outbound,
        *,
        signals: Signals | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.run_id = run
        self._signals = signals or Signals.private()
        self._job = job
        self._settings = settings
        self._folder = folder
        self._mailbox = mailbox
        self._device = pick_device(settings)
        self.state, held_out = fresh_state(job, settings, self._device)
        self._length = plan_length(job, settings, self.state.data.steps_per_epoch)
        self._telemetry = Telemetry(
            outbound, run, self.state, seconds=settings.telemetry_seconds, wall_ns=wall_ns
        )
        self._phases = PhaseClock()
        phase_metrics = PhaseMetrics(self._phases, self._telemetry, self._device)
        self._side = SideTraining(self.state.kasmina, self.state.model, job.loss)
        tasks = task_gradients(job, settings, self.state, self._device)
        self._step = TrainStep(
            self.state.model,
            job.loss,
            self.state.optimizer,
            self._device,
            self.state.seed,
            self._side,
            tasks=tasks,
            options=step_options(settings),
            state=self.state.engine,
            before_update=self._set_rates,
            phases=self._phases,
        )
        told = None if tasks is None else ToldGradients(tasks, self.state, self._telemetry)
        self._steering = Steering(
            self.state,
            folder,
            settings,
            self._telemetry,
            job=job.name,
            deadline=self._signals.deadline,
            saving=partial(self._signals.phase, Phase.SAVING),
        )
        validating = Validating(
            job,
            self.state.model,
            held_out,
            self._device,
            self._step.passes,
            self._signals,
            lambda: bool(mailbox.stop_reason),
        )
        self._seeds = self._steering.seeds = SeedWork(
            self.state,
            self._side,
            folder,
            self._telemetry,
            validating.first,
            note=self._steering.emergencies.note,
        )
        self._observations = self._steering.observations = Observations(
            run, self.state, self._device, outbound, self._telemetry, wall_ns=wall_ns
        )
        self._profiling = self._steering.profiling = Profiling(
            self.state,
            ProfileFolder(
                folder.path, keep=settings.profile_keep, max_bytes=settings.profile_max_mb << 20
            ),
            self._phases,
            self._telemetry,
            self._device,
        )
        self._after_crash = folder.unended
        self._reporting = Reporting(
            self.state,
            self._length,
            self._telemetry,
            told,
            phase_metrics,
            Standing(self.state, folder, lambda: self._profiling.busy),
            self._steering.emergencies,
            lambda: self._epoch_end.boundary.validation_accuracy,
        )
        handshake = self._steering.handshake = Handshake(
            run,
            self.state,
            settings,
            self._steering.guards,
            folder,
            self._telemetry,
            mailbox,
            outbound,
            behind=lambda: self._fence.recovering.behind,
            progress=self._signals.progress,
        )
        self._epoch_end = EpochEnd(
            run,
            job.name,
            settings,
            self._steering,
            validating,
            observations=self._observations,
            handshake=handshake,
            seeds=self._seeds,
            profiling=self._profiling,
            clock=self._phases,
            telemetry=self._telemetry,
            wall_ns=wall_ns,
        )
        self._resumed = resume(
            run, job, settings, folder, self.state, self._device, self._telemetry
        )
        self._fence = self._begin(mailbox, outbound, wall_ns)
        self._steering.emergencies.look()
        self._first_step = self.state.step

    def run(self) -> RunSummary:
        """Train to the end, to a stop, or to a failure.

        Raises:
            Exception: Whatever the job's own code raised; an alert has been published.
        """
        started = time.monotonic()
        state, fence, mailbox, watch = self.state, self._fence, self._mailbox, self.state.watch
        kasmina, side, step = state.kasmina, self._side, self._step
        signals, enter, profiling = self._signals, self._phases.enter, self._profiling
        steering, cadence = self._steering, self._steering.cadence
        health, checkpoints = steering.health, steering.checkpoints
        emergencies, reporting = steering.emergencies, self._reporting
        draw_ahead, last_step = self._prefetch(), self._length.steps
        try:
            signals.begin(state.step)
            enter(phases.FENCE)
            profiling.begin_run(self._settings.profile_steps, after_crash=self._after_crash)
            fence.recovering.finish_contained()
            steering.finish_cuts()
            reporting.fence()
            while True:
                ends = state.epoch_ends and not fence.recovering.cut_is_next
                if ends and not held(state.mode) and self._epoch_end.cross():
                    reporting.fence()
                if mailbox.waiting or state.step >= fence.next_step:
                    enter(phases.FENCE)
                    fence.open()
                    reporting.fence()
                    health.settle()
                    step.passes.rearm()
                if self._at_end():
                    break
                if state.epoch_ends:
                    continue  # A rollback has led here.
                if profiling.active:
                    profiling.at_step()
                if state.step >= kasmina.next_step or side.failed:
                    enter(phases.SEEDS)
                    reporting.seeds_changed()
                    self._seeds.advance()
                    step.passes.rearm()
                if state.step >= emergencies.next_step:
                    emergencies.ease()
                loss = step.advance(
                    state.data, state.timeline, conservative=state.mode.conservative
                )
                enter(phases.LOSS)
                if step.passes.fallbacks:
                    settle_fallbacks(
                        step.passes, state, self._folder, self._telemetry, emergencies.note
                    )
                state.step += 1
                signals.step(state.step)
                if draw_ahead is not None and state.step < last_step:
                    # The device has work: this step's.
                    enter(phases.PREFETCH)
                    draw_ahead()
                    enter(phases.LOSS)
                reading = watch.push(state.step, loss)
                if reading is not None:
                    if reading.verdict is not Verdict.OK:
                        health.recover_from(reading)
                        continue
                    state.note(reading)
                    if checkpoints.holding:
                        checkpoints.judge()
                if self._telemetry.due():
                    enter(phases.TELEMETRY)
                    reporting.steps()
                if cadence.includes(state.step, state.data.position):
                    enter(phases.SNAPSHOT)
                    checkpoints.take_snapshot()
                if self._saving_due() and not state.epoch_ends:
                    enter(phases.CHECKPOINT)
                    checkpoints.save_later()
            return self._finish(started)
        except Exception as error:
            # Also while steps are run again: this has not been told before.
            self._telemetry.replaying = False
            self._telemetry.alert(
                "training_failed",
                f"{type(error).__name__}: {error}",
                critical=True,
                step=state.step,
            )
            raise
        finally:
            self._phases.stop()
            self._profiling.close(self._settings.drain_seconds)
            self._steering.checkpoints.close(self._settings.drain_seconds)

    # Start and end

    def _begin(self, mailbox: Mailbox, outbound: Outbound, wall_ns: Callable[[], int]) -> Fence:
        folder, state = self._folder, self.state
        resumed = self._resumed
        fence = Fence(
            self._steering,
            self.run_id,
            folder=folder,
            mailbox=mailbox,
            outbound=outbound,
            telemetry=self._telemetry,
            replay=resumed.replay,
            restored=resumed.sequence,
            wall_ns=wall_ns,
            on_hold=self._hold,
        )
        self._telemetry.event(
            "resumed" if resumed.checkpoint else "started",
            f"at step {state.step} of {self._length.steps}",
            checkpoint=resumed.checkpoint,
            records_to_replay=len(resumed.replay),
        )
        tell_features(
            step_options(self._settings),
            self._device,
            state,
            self._telemetry,
            sample_losses=self._job.sample_losses is not None,
            prefetch=feature(state.data, self._device, wanted=self._settings.prefetch),
        )
        self._steering.fence = fence
        tell_newest_answer(folder, Outcomes(self.run_id, state, wall_ns), outbound)
        if not resumed.checkpoint:
            # A rollback always has somewhere to go.
            self._steering.save_checkpoint(label="start")
        return fence

    def _at_end(self) -> bool:
        steering = self._steering
        if self._mailbox.stop_reason:
            steering.stop(self._mailbox.stop_reason)
        elif self._length.reached(self.state):
            if not steering.health.check():
                return self._at_end()
            steering.stop("finished")
        return bool(steering.stopping)

    def _finish(self, started: float) -> RunSummary:
        state = self.state
        seconds = time.monotonic() - started
        here = state.timeline, state.step
        boundary = self._epoch_end.boundary
        if self._steering.stopping == "finished" and boundary.validated_at != here:
            boundary.validate()  # Restarted at the very end, or --steps ended in an epoch.
        name = self._steering.checkpoints.save_at_end()
        weights = weights_sha256(state.model)
        self._telemetry.event("stopped", f"at step {state.step}: {self._steering.stopping}")
        stopped = RunStopped(stopped_by=self._steering.stopping, weights_sha256=weights)
        self._folder.write(state.stamp(JournalRecord(stopped=stopped)))
        if self._steering.stopping == "finished":
            self._seeds.terminate()
            self._observations.end_run()
        self._reporting.end()
        done = state.step - self._first_step
        return RunSummary(
            run=self.run_id,
            job=self._job.name,
            steps=state.step,
            epochs=state.epoch,
            loss=boundary.validation_loss,
            accuracy=boundary.validation_accuracy,
            training_loss=state.last_loss,
            weights_sha256=weights,
            stopped_by=self._steering.stopping,
            commands_applied=self._fence.applied,
            resumed_from=self._resumed.checkpoint,
            timeline=state.timeline,
            mode=mode_name(state.mode),
            exact=self._resumed.exact,
            checkpoint=name,
            folder=str(self._folder.path),
            seconds=seconds,
            steps_per_second=done / seconds if seconds > 0 else 0.0,
        )

    # Between steps

    def _hold(self, waits: bool) -> None:
        if waits:
            self._reporting.fence()
        self._phases.enter(phases.HELD if waits else phases.FENCE)

    def _prefetch(self) -> Callable[[], None] | None:
        data = self.state.data
        if not isinstance(data, PrefetchedBatches):
            return None
        data.on_failure = partial(tell_prefetch_off, self._telemetry)
        return data.draw_ahead if data.draws_ahead else None

    def _saving_due(self) -> bool:
        every = self._settings.checkpoint_every_steps
        return every is not None and self.state.step % every == 0

    def _set_rates(self) -> None:
        # Just before the update: no weight sees a foreign rate, though the job's loss set it. So
        # a correction is a note, and not a decision to replay.
        for found in self.state.learning_rate.apply(self.state.step):
            self._telemetry.alert(
                "learning_rate_corrected",
                f"group {found.group} had {found.found:g}, set back to {found.expected:g}",
                group=found.group,
            )

    @property
    def standing(self) -> Mapping[str, Any]:
        """See :attr:`Reporting.standing`."""
        return self._reporting.standing

    @property
    def progress(self) -> Progress:
        """See :attr:`Reporting.progress`."""
        return self._reporting.progress
