"""From a job and settings to the state of a run that has not made a step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from tolaria_bus.kasmina import Garden, Kasmina
from tolaria_bus.settings import SettingError, Settings
from tolaria_bus.tolaria.engine.activation import checkpoint_activations
from tolaria_bus.tolaria.engine.aggregation import TaskGradients, UnknownHandler
from tolaria_bus.tolaria.engine.aggregation import find as find_handler
from tolaria_bus.tolaria.engine.data import ValidationBatches, training_batches
from tolaria_bus.tolaria.engine.job import Job, build_data, build_model
from tolaria_bus.tolaria.engine.job_errors import JobError, user_error
from tolaria_bus.tolaria.engine.learning_rate import LearningRateController
from tolaria_bus.tolaria.engine.loss_watch import LossWatch
from tolaria_bus.tolaria.engine.optimizer import OptimizerManager
from tolaria_bus.tolaria.engine.options import StepOptions, amp_dtype
from tolaria_bus.tolaria.engine.precision import StepState
from tolaria_bus.tolaria.engine.prefetch import prefetched
from tolaria_bus.tolaria.engine.schedule import Schedule
from tolaria_bus.tolaria.engine.seeding import Domain, mix, seed_globals
from tolaria_bus.tolaria.recovery.state import TrainingState


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run is.

    Attributes:
        steps: Planned optimizer steps; the learning rate's schedule runs over them.
        epochs: Planned passes over the data, rounded up.
        positions: Batches after which the run ends, ``None`` where ``--steps`` decides.
    """

    steps: int
    epochs: int
    positions: int | None

    def reached(self, state: TrainingState) -> bool:
        """Is this the end? After a rollback that skips data, epochs end by data, not by steps."""
        if self.positions is None:
            return state.step >= self.steps
        return state.data.position >= self.positions


def steps_per_epoch(settings: Settings, batches_per_epoch: int) -> int:
    """Optimizer steps of an epoch: the last one may have fewer batches to accumulate."""
    return -(-batches_per_epoch // settings.accumulate)


def plan_length(job: Job, settings: Settings, batches_per_epoch: int) -> Length:
    """The run's length: ``--steps``, else ``--epochs``, else the job's epochs."""
    per_epoch = steps_per_epoch(settings, batches_per_epoch)
    if settings.steps is not None:
        return Length(settings.steps, -(-settings.steps // per_epoch), None)
    epochs = settings.epochs or job.epochs
    return Length(epochs * per_epoch, epochs, epochs * batches_per_epoch)


def follows_length(schedule: Schedule) -> bool:
    """Do the rates of a schedule depend on how long the run is?"""
    return schedule.kind == "cosine" or (schedule.kind == "step" and schedule.step_size is None)


def step_options(settings: Settings) -> StepOptions:
    """What the step is asked to do."""
    return StepOptions(**{name: getattr(settings, name) for name in StepOptions.__slots__})


def pick_device(settings: Settings) -> torch.device:
    """The device to train on, with torch's threads and determinism set up for this process.

    Raises:
        SettingError: The device isn't there.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(settings.deterministic)
    if settings.deterministic:
        # cuBLAS promises the same bits only with it; older releases of torch refuse to go without.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = settings.tf32
    wanted = settings.device
    if wanted == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(wanted)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise SettingError(
                f"setting device = {wanted!r}: this machine has {count} CUDA devices"
            )
        device = torch.device("cuda", device.index or 0)
    return device


def _prepared(model: nn.Module, settings: Settings) -> nn.Module:
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if pattern := settings.activation_checkpointing:
        try:
            checkpoint_activations(model, pattern)
        except ValueError as error:
            raise SettingError(
                f"setting activation_checkpointing = {pattern!r}: {error}"
            ) from error
    return model


def make_kasmina(job: Job, model: nn.Module) -> Kasmina:
    """The owner of the model's seeds: the job's own (``kasmina(model)``), else a ``Garden``.

    Raises:
        JobError: The job's own isn't one, or its ``seed_slots`` name what can't be a slot.
    """
    own = getattr(job.source, "kasmina", None)
    if own is None:
        try:
            return Garden(model, getattr(job.source, "seed_slots", ()))
        except (TypeError, ValueError) as error:
            raise JobError(f"job {job.name!r}: {error}") from error
    try:
        made: object = own(model)
    except Exception as error:
        raise user_error(f"job {job.name!r}", "kasmina(model)", error) from error
    wanted = [*Kasmina.__annotations__, *(name for name in vars(Kasmina) if name[0] != "_")]
    missing = [name for name in wanted if not hasattr(made, name)]
    if missing:
        raise JobError(
            f"job {job.name!r}: kasmina(model) returned a {type(made).__name__}, which lacks "
            f"{', '.join(missing)}"
        )
    return cast("Kasmina", made)


def task_gradients(
    job: Job, settings: Settings, state: TrainingState, device: torch.device
) -> TaskGradients | None:
    """What tells seeds apart in the gradient; None where the job gives no losses of samples.

    Raises:
        SettingError: ``aggregation`` can't be had: by this job, with fp16, or here at all.
    """
    wanted = f"setting aggregation = {settings.aggregation!r}"
    try:
        handler = find_handler(settings.aggregation)
    except UnknownHandler as error:
        raise SettingError(f"{wanted}: {error}") from error
    if job.sample_losses is None:
        if handler is not None:
            raise SettingError(
                f"{wanted}: job {job.name!r} gives no losses of single samples (a loss with "
                "reduction='none', or sample_losses), so nothing tells host and seeds apart"
            )
        return None
    if handler is not None and not handler.scales and state.engine.scaler is not None:
        raise SettingError(
            f"{wanted}: with fp16 gradients are scaled, which changes what it makes of them; "
            "allowed with it: none, pcgrad"
        )
    return TaskGradients(
        state.kasmina,
        state.optimizer,
        state.model,
        job.sample_losses,
        device,
        state.seed,
        handler=handler,
        engine=state.engine,
    )


def fresh_state(
    job: Job, settings: Settings, device: torch.device
) -> tuple[TrainingState, ValidationBatches]:
    """The state before the first step, a pure function of the job and the seed; held-out data.

    Python's and numpy's global generators are a part of it: a model or a loss may draw from them.

    Raises:
        JobError: The job's own code failed, or its data doesn't fit.
    """
    model = _prepared(build_model(job, settings.seed).to(device).train(), settings)
    found = build_data(job, settings.seed)
    data = training_batches(
        found.train, job.batch_size, settings.seed, timeline=1, pin_memory=device.type == "cuda"
    )
    length = plan_length(job, settings, data.steps_per_epoch)
    optimizer = OptimizerManager(job.optimizer, model)
    amp, _ = amp_dtype(step_options(settings), device)
    state = TrainingState(
        model=model,
        optimizer=optimizer,
        learning_rate=LearningRateController(
            optimizer,
            job.schedule,
            total_steps=length.steps,
            steps_per_epoch=steps_per_epoch(settings, data.steps_per_epoch),
            new_group_warmup_steps=settings.new_parameter_warmup_steps,
        ),
        kasmina=make_kasmina(job, model),
        data=prefetched(data, device, wanted=settings.prefetch),
        watch=LossWatch(device, factor=settings.loss_spike_factor, floor=settings.loss_spike_floor),
        seed=settings.seed,
        engine=StepState(device, fp16=amp is torch.float16),
    )
    seed_globals(mix(settings.seed, Domain.GLOBAL))
    return state, ValidationBatches(found.validation, job.batch_size, settings.seed)
