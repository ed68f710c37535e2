"""The trainer: the loop, its two fences, and what a command may do to it.

Knows no Redis and no asyncio. It meets the outside through a mailbox (in) and an outbound (out)
and runs on one thread, its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from tolaria_bus.leyline import JournalRecord, RunStopped
from tolaria_bus.safety import Signals
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.assembly import assemble
from tolaria_bus.tolaria.control.features import settle_fallbacks, tell_features
from tolaria_bus.tolaria.control.fence import Fence
from tolaria_bus.tolaria.control.mailbox import Mailbox, Outbound
from tolaria_bus.tolaria.control.mode import held, mode_name
from tolaria_bus.tolaria.control.outcomes import Outcomes
from tolaria_bus.tolaria.control.retelling import tell_newest_answer
from tolaria_bus.tolaria.engine import phases
from tolaria_bus.tolaria.engine.job import Job
from tolaria_bus.tolaria.engine.loss_watch import Verdict
from tolaria_bus.tolaria.engine.prefetch import feature
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.weights import weights_sha256
from tolaria_bus.tolaria.resuming import resume
from tolaria_bus.tolaria.start import step_options
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
        features: What of the engine is on, and why the rest is off, in one line.
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
        self._parts = parts = assemble(
            job, settings, run, folder, mailbox, outbound, self._signals, wall_ns
        )
        self._steering, self._telemetry = parts.steering, parts.telemetry
        self._reporting, self._epoch_end = parts.reporting, parts.epoch_end
        self.state = parts.state
        self._after_crash = folder.unended
        self._resumed = resume(
            run, job, settings, folder, self.state, parts.device, parts.telemetry
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
        parts, steering, telemetry = self._parts, self._steering, self._telemetry
        kasmina, side, step, passes = state.kasmina, parts.side, parts.step, parts.step.passes
        signals, enter, profiling = self._signals, parts.phases.enter, parts.profiling
        health, checkpoints, cadence = steering.health, steering.checkpoints, steering.cadence
        emergencies, reporting = steering.emergencies, self._reporting
        draw_ahead, last_step = parts.draw_ahead, parts.length.steps
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
                    passes.rearm()
                if self._at_end():
                    break
                if state.epoch_ends:
                    continue  # A rollback has led here.
                if profiling.active:
                    profiling.at_step()
                if state.step >= kasmina.next_step or side.failed:
                    enter(phases.SEEDS)
                    reporting.seeds_changed()
                    parts.seeds.advance()
                    passes.rearm()
                if state.step >= emergencies.next_step:
                    emergencies.ease()
                loss = step.advance(
                    state.data, state.timeline, conservative=state.mode.conservative
                )
                enter(phases.LOSS)
                if passes.fallbacks:
                    settle_fallbacks(passes, state, self._folder, telemetry, emergencies.note)
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
                if telemetry.due():
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
            telemetry.replaying = False
            telemetry.alert(
                "training_failed",
                f"{type(error).__name__}: {error}",
                critical=True,
                step=state.step,
            )
            raise
        finally:
            parts.phases.stop()
            profiling.close(self._settings.drain_seconds)
            checkpoints.close(self._settings.drain_seconds)

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
            f"at step {state.step} of {self._parts.length.steps}",
            checkpoint=resumed.checkpoint,
            records_to_replay=len(resumed.replay),
        )
        self.features = tell_features(
            step_options(self._settings),
            self._parts.device,
            state,
            self._telemetry,
            sample_losses=self._job.sample_losses is not None,
            prefetch=feature(state.data, self._parts.device, wanted=self._settings.prefetch),
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
        elif self._parts.length.reached(self.state):
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
            self._parts.seeds.terminate()
            self._parts.observations.end_run()
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
        self._parts.phases.enter(phases.HELD if waits else phases.FENCE)

    def _saving_due(self) -> bool:
        every = self._settings.checkpoint_every_steps
        return every is not None and self.state.step % every == 0

    @property
    def standing(self) -> Mapping[str, Any]:
        """See :attr:`Reporting.standing`."""
        return self._reporting.standing

    @property
    def progress(self) -> Progress:
        """See :attr:`Reporting.progress`."""
        return self._reporting.progress
