"""Whether the mean of a job's losses of single samples is its loss.

It must be, as a step in which seeds are told apart is made from those: where it isn't (a loss that
leaves out padding, or weighs classes, divides by what it counted) the loss and its gradient would
be of another scale as long as a seed is a task.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

from tolaria_bus.tolaria.engine.data import ValidationBatches
from tolaria_bus.tolaria.engine.job import Job
from tolaria_bus.tolaria.engine.job_errors import in_one_line, user_error
from tolaria_bus.tolaria.engine.passes import Passes
from tolaria_bus.tolaria.engine.seeding import Domain, mix, seeded
from tolaria_bus.tolaria.engine.validation import as_in_training, evaluating, on_device

_RELATIVE: Final = 1e-3
_RELATIVE_AUTOCAST: Final = 2e-2  # Of bfloat16, which has 8 bits.
_ABSOLUTE: Final = 1e-6


def disagreement(
    model: nn.Module,
    job: Job,
    batches: ValidationBatches,
    device: torch.device,
    passes: Passes | None = None,
) -> str:
    """Say how the samples' losses don't have the loss as their mean; empty: they have.

    Measured as a validation is, and like one it leaves no trace. Both losses of a batch see the
    same random numbers. A batch of which neither is finite says nothing.

    Args:
        model: On ``device``.
        job: Whose losses; it has some of single samples.
        batches: Held-out data.
        device: Where the model is.
        passes: Whose autocast is used; the model runs uncompiled.

    Raises:
        JobError: the job's ``loss`` failed.
    """

    def measured(under: AbstractContextManager[Any]) -> str:
        relative = _RELATIVE if isinstance(under, nullcontext) else _RELATIVE_AUTOCAST
        with seeded(mix(batches.seed, Domain.VALIDATION)), under:
            for number, (batch, _) in enumerate(batches.weighted(), 1):
                batch = on_device(batch, device)
                seed = mix(batches.seed, Domain.VALIDATION, number)
                why = _compare(model, job, batch, seed, relative)
                if why:
                    return f"on held-out batch {number} {why}"
        return ""

    with evaluating(model, passes):
        return as_in_training(measured, passes)


def _compare(model: nn.Module, job: Job, batch: Any, seed: int, relative: float) -> str:
    assert job.sample_losses is not None
    loss = _drawn(lambda: float(job.loss(model, batch)), job, seed)
    try:
        with seeded(seed):
            found: object = job.sample_losses(model, batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the answer says
        return f"its samples' losses can't be had: {in_one_line(error)}"
    if not isinstance(found, Tensor) or found.dim() == 0 or not found.numel():
        what = (
            f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        )
        return f"its samples' losses are {what}, not a tensor of shape (samples, ...)"
    mean = float(found.double().mean())
    if not math.isfinite(loss) and not math.isfinite(mean):
        return ""
    if abs(loss - mean) <= _ABSOLUTE + relative * abs(loss):
        return ""
    return f"its loss is {loss:.6g} and the mean of its samples' losses {mean:.6g}"


def _drawn(call: Callable[[], float], job: Job, seed: int) -> float:
    try:
        with seeded(seed):
            return call()
    except Exception as error:
        raise user_error(f"job {job.name!r}", "loss(model, batch)", error) from error
