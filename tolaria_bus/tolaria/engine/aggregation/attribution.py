"""Whose a batch's samples are: what was said of it made into a matrix, and checked on the device.

A batch carries its attribution itself where it is a mapping with an entry ``attribution``, or an
object with an attribute of that name (a named tuple). It, and what ``attribute_batch`` returns, may
be

* a mapping of a seed's id to its share of each sample, shape (samples,). The host has what is left;
  an entry ``host`` may say so. A seed that is no task now (it hasn't come to BLENDING, or is gone)
  is in the host's hands, and so is its share;
* a tensor of shape (samples, 1 + tasks): the host's shares, then those of the seeds that are tasks
  now, the oldest first.

What can be told from shapes alone is an error of the job's. Whether the numbers are shares is found
out on the device: a sample with one that is negative or no number, or whose shares don't sum to 1,
is the host's, and is counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tolaria_bus.kasmina import HOST
from tolaria_bus.tolaria.engine.job_errors import JobError

FIELD = "attribution"

# By how much a sample's shares may miss 1, and fall short of 0: loaders may have half precision.
_TOLERANCE = 1e-3


def carried_by(batch: Any) -> object | None:
    """Return the attribution that a batch has with it; None: it has none."""
    if isinstance(batch, Mapping):
        return batch.get(FIELD)
    return getattr(batch, FIELD, None)


def matrix(found: object, tasks: Sequence[str], losses: Tensor, *, said_by: str) -> Tensor:
    """Return an attribution as a tensor, its numbers as they are.

    Args:
        found: What was said.
        tasks: Ids of the seeds that are tasks, in order.
        losses: Of the samples, shape (samples,): dtype and device of the result.
        said_by: Whom an error blames.

    Returns:
        Shape (samples, 1 + tasks).

    Raises:
        JobError: it is of another type or shape.
    """
    samples = len(losses)
    if isinstance(found, Tensor):
        wanted = (samples, 1 + len(tasks))
        if tuple(found.shape) != wanted:
            raise JobError(
                f"the job: {said_by} is a tensor of shape {tuple(found.shape)}; it must be "
                f"{wanted}: samples by {', '.join([HOST, *tasks])}"
            )
        return found.to(losses)
    if not isinstance(found, Mapping):
        raise JobError(
            f"the job: {said_by} is a {type(found).__name__}; it must be a mapping of seed ids to "
            "shares, or a tensor"
        )
    columns = [_column(found, name, losses, said_by) for name in tasks]
    rest = 1.0 - sum(columns, torch.zeros_like(losses))
    if HOST in found:
        strangers = found.keys() - {HOST, *tasks}
        parts = [_column(found, name, losses, said_by) for name in (HOST, *sorted(strangers))]
        rest = sum(parts, torch.zeros_like(losses))
    return torch.stack([rest, *columns], dim=1)


def _column(found: Mapping[Any, Any], name: str, losses: Tensor, said_by: str) -> Tensor:
    shares = found.get(name)
    if shares is None:
        return torch.zeros_like(losses)
    if not isinstance(shares, Tensor) or shares.shape != losses.shape:
        what = tuple(shares.shape) if isinstance(shares, Tensor) else type(shares).__name__
        raise JobError(
            f"the job: {said_by} of {name!r} is {what}; it must be a tensor of shape "
            f"{tuple(losses.shape)}: a share of each sample"
        )
    return shares.to(losses)


def checked(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attribution, what is wrong in it made the host's; and how many samples that is.

    Args:
        shares: Shape (samples, 1 + tasks).

    Returns:
        Not negative, each row summing to 1; and a scalar of int64 on the same device.
    """
    total = shares.sum(1, keepdim=True)
    # NaN fails every comparison.
    sound = (shares >= -_TOLERANCE).all(1, keepdim=True) & ((total - 1.0).abs() <= _TOLERANCE)
    hosts = torch.zeros_like(shares)
    hosts[:, 0] = 1.0
    positive = shares.clamp_min(0.0)
    clean = torch.where(sound, positive / positive.sum(1, keepdim=True), hosts)
    return clean, (~sound).sum()


def alone(losses: Tensor, tasks: int) -> Tensor:
    """Return the attribution of everything to the host; shape (samples, 1 + tasks)."""
    shares = losses.new_zeros(len(losses), 1 + tasks)
    shares[:, 0] = 1.0
    return shares
