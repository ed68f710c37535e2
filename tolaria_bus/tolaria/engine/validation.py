"""Loss and accuracy on the held-out data."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tolaria_bus.tolaria.engine.batch import page_locked, to_device
from tolaria_bus.tolaria.engine.data import ValidationBatches
from tolaria_bus.tolaria.engine.job import Job
from tolaria_bus.tolaria.engine.job_errors import JobError, user_error
from tolaria_bus.tolaria.engine.passes import Passes
from tolaria_bus.tolaria.engine.seeding import Domain, mix, seeded


class Validation(NamedTuple):
    """Means over the samples; ``accuracy`` is None where the job doesn't say how to measure it."""

    loss: float
    accuracy: float | None


def validate(
    model: nn.Module,
    job: Job,
    batches: ValidationBatches,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
    passes: Passes | None = None,
    on_fallback: Callable[[str], object] = lambda why: None,
) -> Validation | None:
    """Measure the model on the held-out data, in eval mode and without gradients.

    Each module's own train or eval mode is restored, and so are the global random generators:
    training after a validation is bitwise training without it. A batch counts by its samples. On
    an accelerator nothing waits until the end.

    What works in training under autocast may fail here: in eval mode torch takes other ways, such
    as the fused one of its transformer layers. Then all is measured without. It is tried at each
    validation: a run that is resumed in between has the same figures.

    Args:
        model: On ``device``.
        job: Whose ``loss`` and ``accuracy``.
        batches: The held-out data.
        device: Where the model is.
        stop: Asked before each batch; once it is true, nothing more is read.
        passes: Whose autocast is used; the model runs uncompiled.
        on_fallback: Told why autocast wasn't.

    Returns:
        None if it was stopped.

    Raises:
        JobError: the job's code failed.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()

    def measured(under: AbstractContextManager[Any]) -> Validation | None:
        with seeded(mix(batches.seed, Domain.VALIDATION)), under:
            return _measure(model, job, batches, device, stop)

    try:
        with torch.no_grad(), nullcontext() if passes is None else passes.eager():
            if passes is None or not passes.autocasts:
                return measured(nullcontext())
            try:
                return measured(passes.autocast())
            except JobError as error:
                if isinstance(error.__cause__, torch.OutOfMemoryError):
                    raise
                why = str(error)
            found = measured(nullcontext())
            on_fallback(why)
            return found
    finally:
        for module, training in modes:
            module.training = training


def _measure(
    model: nn.Module,
    job: Job,
    batches: ValidationBatches,
    device: torch.device,
    stop: Callable[[], bool],
) -> Validation | None:
    loss: float | Tensor = 0.0
    accuracy: float | Tensor = 0.0
    samples = 0
    for batch, size in batches.weighted():
        if stop():
            return None
        batch = batch if device.type == "cpu" else to_device(page_locked(batch), device)
        part = "loss(model, batch)"
        try:
            loss = loss + job.loss(model, batch).detach().double() * size
            if job.accuracy is not None:
                part = "accuracy(model, batch)"
                accuracy = accuracy + _double(job.accuracy(model, batch)) * size
        except Exception as error:
            raise user_error(f"job {job.name!r}", f"validation's {part}", error) from error
        samples += size
    mean = float(loss) / samples
    return Validation(mean, None if job.accuracy is None else float(accuracy) / samples)


def _double(value: Tensor | float) -> Tensor | float:
    return value.detach().double() if isinstance(value, Tensor) else float(value)
