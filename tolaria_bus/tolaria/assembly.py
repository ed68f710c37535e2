"""The parts of a run, made and joined: what the trainer's loop then drives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from tolaria_bus.safety import Phase, Signals
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control.epoch_end import EpochEnd
from tolaria_bus.tolaria.control.features import tell_plain_validation, tell_prefetch_off
from tolaria_bus.tolaria.control.gradients import ToldGradients, gradient_metrics
from tolaria_bus.tolaria.control.handshake import Handshake
from tolaria_bus.tolaria.control.mailbox import Mailbox, Outbound
from tolaria_bus.tolaria.control.observing import Observations
from tolaria_bus.tolaria.control.phase_metrics import PhaseMetrics
from tolaria_bus.tolaria.control.profiling import Profiling
from tolaria_bus.tolaria.control.reporting import Reporting
from tolaria_bus.tolaria.control.seeds import SeedWork
from tolaria_bus.tolaria.control.standing import Standing
from tolaria_bus.tolaria.control.steering import Steering
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.control.validating import Validating
from tolaria_bus.tolaria.engine.job import Job
from tolaria_bus.tolaria.engine.phases import PhaseClock
from tolaria_bus.tolaria.engine.prefetch import PrefetchedBatches
from tolaria_bus.tolaria.engine.side import SideTraining
from tolaria_bus.tolaria.engine.step import TrainStep
from tolaria_bus.tolaria.recovery.profile_folder import ProfileFolder
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState
from tolaria_bus.tolaria.start import (
    Length,
    fresh_state,
    pick_device,
    plan_length,
    step_options,
    task_gradients,
)


@dataclass(frozen=True)
class Parts:
    """What a run consists of, each part knowing those that it needs.

    Attributes:
        device: Where the model is.
        state: Everything that must survive; fresh.
        length: Of the run.
        telemetry: Speaks for it.
        phases: Times it.
        step: Makes its steps.
        draw_ahead: Draws the batch of the next step; None: each is drawn when it is due.
        side: Lets seeds learn beside the host in them.
        steering: What commands act on. Its fence comes once the state is restored.
        seeds: Leads seeds through their lives.
        observations: What commands have led to.
        profiling: Traces.
        epoch_end: What belongs to the end of an epoch.
        reporting: Tells how it stands.
    """

    device: torch.device
    state: TrainingState
    length: Length
    telemetry: Telemetry
    phases: PhaseClock
    step: TrainStep
    draw_ahead: Callable[[], None] | None
    side: SideTraining
    steering: Steering
    seeds: SeedWork
    observations: Observations
    profiling: Profiling
    epoch_end: EpochEnd
    reporting: Reporting


def assemble(
    job: Job,
    settings: Settings,
    run: str,
    folder: RunFolder,
    mailbox: Mailbox,
    outbound: Outbound,
    signals: Signals,
    wall_ns: Callable[[], int],
) -> Parts:
    """Make the parts of a run, on the device that it trains on.

    All that others own of the state has its section there afterwards, so that it can be restored.

    Args:
        job: What to train.
        settings: How.
        run: The run's id.
        folder: Where it lives on disk, open.
        mailbox: What comes in.
        outbound: What goes out.
        signals: Where a supervisor sees steps and phases.
        wall_ns: Nanoseconds since the epoch.

    Raises:
        SettingError: A setting can't be met here.
        JobError: The job's own code failed, or gave what can't be used.
    """
    device = pick_device(settings)
    state, held_out = fresh_state(job, settings, device)
    length = plan_length(job, settings, state.data.steps_per_epoch)
    telemetry = Telemetry(outbound, run, state, seconds=settings.telemetry_seconds, wall_ns=wall_ns)
    phases = PhaseClock()
    phase_metrics = PhaseMetrics(phases, telemetry, device)
    side = SideTraining(state.kasmina, state.model, job.loss)
    tasks = task_gradients(job, settings, state, device)
    step = TrainStep(
        state.model,
        job.loss,
        state.optimizer,
        device,
        state.seed,
        side,
        tasks=tasks,
        options=step_options(settings),
        state=state.engine,
        before_update=partial(_set_rates, state, telemetry),
        phases=phases,
    )
    steering = Steering(
        state,
        folder,
        settings,
        telemetry,
        job=job.name,
        deadline=signals.deadline,
        saving=partial(signals.phase, Phase.SAVING),
        server_ms=mailbox.server_ms,
    )
    validating = Validating(
        job,
        state.model,
        held_out,
        device,
        step.passes,
        signals,
        lambda: bool(mailbox.stop_reason),
        partial(tell_plain_validation, telemetry),
    )
    steering.seeds = SeedWork(
        state, side, folder, telemetry, validating.first, note=steering.emergencies.note
    )
    steering.observations = Observations(run, state, device, outbound, telemetry, wall_ns=wall_ns)
    profiles = ProfileFolder(
        folder.path, keep=settings.profile_keep, max_bytes=settings.profile_max_mb << 20
    )
    profiling = steering.profiling = Profiling(state, profiles, phases, telemetry, device)
    steering.handshake = Handshake(
        run,
        state,
        settings,
        steering.guards,
        folder,
        telemetry,
        mailbox,
        outbound,
        behind=lambda: steering.fence.recovering.behind,
        progress=signals.progress,
    )
    epoch_end = EpochEnd(
        run,
        job.name,
        settings,
        steering,
        validating,
        observations=steering.observations,
        handshake=steering.handshake,
        seeds=steering.seeds,
        gradients=partial(gradient_metrics, state, tasks),
        profiling=profiling,
        clock=phases,
        telemetry=telemetry,
        wall_ns=wall_ns,
    )
    reporting = Reporting(
        state,
        length,
        telemetry,
        None if tasks is None else ToldGradients(tasks, state, telemetry),
        phase_metrics,
        Standing(state, folder, lambda: profiling.busy),
        steering.emergencies,
        lambda: epoch_end.boundary.validation_accuracy,
    )
    return Parts(
        device=device,
        state=state,
        length=length,
        telemetry=telemetry,
        phases=phases,
        step=step,
        draw_ahead=_draw_ahead(state, telemetry),
        side=side,
        steering=steering,
        seeds=steering.seeds,
        observations=steering.observations,
        profiling=profiling,
        epoch_end=epoch_end,
        reporting=reporting,
    )


def _draw_ahead(state: TrainingState, telemetry: Telemetry) -> Callable[[], None] | None:
    data = state.data
    if not isinstance(data, PrefetchedBatches):
        return None
    data.on_failure = partial(tell_prefetch_off, telemetry)
    return data.draw_ahead if data.draws_ahead else None


def _set_rates(state: TrainingState, telemetry: Telemetry) -> None:
    # Just before the update: no weight sees a foreign rate, though the job's loss set it. So
    # a correction is a note, and not a decision to replay.
    for found in state.learning_rate.apply(state.step):
        telemetry.alert(
            "learning_rate_corrected",
            f"group {found.group} had {found.found:g}, set back to {found.expected:g}",
            group=found.group,
        )
