"""Several gradients become one; those that aren't finite have no part in it."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tolaria_bus.tolaria.engine.aggregation.blocks import as_rows, blocks, flat
from tolaria_bus.tolaria.engine.aggregation.gramian import gramian
from tolaria_bus.tolaria.engine.aggregation.handlers import Handler, TorchJDMatrix

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Combined(NamedTuple):
    """What came of the tasks' gradients.

    Attributes:
        shared: The aggregate, one tensor for each shared parameter.
        gram: Of the gradients of shared parameters, unweighted; shape (tasks, tasks), float64.
        finite: Whether a task's whole gradient is; bool, shape (tasks,).
        against: Whether a task's gradient and another one's point against each other; likewise.
    """

    shared: list[Tensor]
    gram: Tensor
    finite: Tensor
    against: Tensor


@torch.no_grad()
def combine(
    gradients: Sequence[Sequence[Tensor | None]],
    parameters: Sequence[Tensor],
    own: Sequence[Sequence[Tensor]],
    weights: Tensor,
    handler: Handler,
    seed: int,
    *,
    leave_out: bool,
) -> Combined:
    """Aggregate w_k·g_k over the tasks k. Nothing waits for the device, but what the handler does.

    Args:
        gradients: Of each task, of the shared parameters; None: zeros. The first task's become the
            aggregate where nobody else has them.
        parameters: Those.
        own: Of each task, the gradients of its own parameters: only looked at.
        weights: Shape (tasks,), float64, on the device.
        handler: Makes one of several.
        seed: Of what it draws.
        leave_out: A task whose gradient isn't finite counts as one of zeros. Else, where there is
            one, the aggregate is not a number.
    """
    shared = _room(gradients, parameters)
    rows = as_rows(gradients, shared)
    gram = gramian(rows).to(weights.device)
    finite = torch.isfinite(gram.diagonal()) & _all_finite(own, weights.device)
    both = finite.unsqueeze(1) & finite
    weighted = torch.where(both, gram, 0.0) * torch.outer(weights, weights)
    against = (weighted < 0).any(1)
    whole = torch.where(finite.all(), 1.0, torch.nan) if not leave_out else None
    if isinstance(handler, TorchJDMatrix):
        _by_matrix(handler, rows, weights, finite, seed, into=flat(shared), times=whole)
    else:
        coefficients = handler.coefficients(weighted, seed) * weights
        if whole is not None:
            coefficients = coefficients * whole
        add = on_cpu if coefficients.is_cpu else on_device
        add(rows, coefficients, finite, flat(shared))
    return Combined(shared, gram, finite, against)


def _room(
    gradients: Sequence[Sequence[Tensor | None]], parameters: Sequence[Tensor]
) -> list[Tensor]:
    """Where the aggregate goes: into the first task's gradients, where they can be written to.

    That is where one is a tensor of its own that lies in memory as its parameter does. New memory
    costs a CPU more than filling it.
    """
    users = Counter(
        gradient.untyped_storage().data_ptr()
        for row in gradients
        for gradient in row
        if gradient is not None
    )
    return [
        gradient
        if gradient is not None
        and gradient.stride() == parameter.stride()
        and gradient.dtype == parameter.dtype
        and gradient.untyped_storage().nbytes() == parameter.numel() * parameter.itemsize
        and users[gradient.untyped_storage().data_ptr()] == 1
        else torch.empty_like(parameter)
        for gradient, parameter in zip(gradients[0], parameters, strict=True)
    ]


def kept(gradient: Tensor, finite: Tensor) -> Tensor:
    """Return the gradient if ``finite``, a scalar of bool on the device, holds; else zeros."""
    return torch.where(finite, gradient, 0.0)


def _all_finite(rows: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
    found = [
        torch.stack([norm.double() for norm in torch._foreach_norm(list(row))]).sum().isfinite()
        if row
        else torch.ones((), dtype=torch.bool, device=device)
        for row in rows
    ]
    return torch.stack(found)


def on_cpu(
    rows: Sequence[Sequence[Tensor]], coefficients: Tensor, finite: Tensor, into: list[Tensor]
) -> None:
    """Sum coefficients·rows; a row that isn't finite isn't read. To look at numbers is no waiting.

    Args:
        rows: 1-dimensional tensors, the same sizes in each row.
        coefficients: One for each row, float64.
        finite: Which rows are.
        into: Where the sum goes; may be the first row's tensors.
    """
    numbers = coefficients.where(finite, 0.0).tolist()
    for *parts, out in blocks([*rows, into]):
        _add_up(parts, numbers, out)


def on_device(
    rows: Sequence[Sequence[Tensor]], coefficients: Tensor, finite: Tensor, into: list[Tensor]
) -> None:
    """Do as ``on_cpu`` does, in few launches, and with nobody looking at a number."""
    of_type = {
        dtype: (coefficients.to(dtype).unbind(), finite.to(_BITS[dtype.itemsize]).unbind())
        for dtype in {each.dtype for each in into}
    }
    for *parts, out in blocks([*rows, into]):
        factors, keep = of_type[out[0].dtype]
        for task, part in enumerate(parts):
            added = _zeroed(part, keep[task])
            torch._foreach_mul_(added, factors[task])
            if task == 0:
                torch._foreach_copy_(out, added)
            else:
                torch._foreach_add_(out, added)


def _add_up(parts: list[list[Tensor]], factors: Sequence[float], out: list[Tensor]) -> None:
    """Sum factors·parts into ``out``, which may be the first; one that comes with 0 isn't read."""
    first, *others = zip(parts, factors, strict=True)
    if first[1] == 0.0:
        torch._foreach_zero_(out)
    else:
        for target, tensor in zip(out, first[0], strict=True):
            if target.data_ptr() != tensor.data_ptr():
                target.copy_(tensor)
        if first[1] != 1.0:
            torch._foreach_mul_(out, first[1])
    for part, factor in others:
        if factor != 0.0:
            torch._foreach_add_(out, part, alpha=factor)


def _zeroed(part: list[Tensor], keep: Tensor) -> list[Tensor]:
    """A copy, its bits times 1 or times 0: which makes 0.0 of NaN, too, in one launch for all."""
    bits = torch._foreach_mul([each.view(keep.dtype) for each in part], keep)
    return [each.view(tensor.dtype) for each, tensor in zip(bits, part, strict=True)]


def _by_matrix(
    handler: TorchJDMatrix,
    rows: Sequence[Sequence[Tensor]],
    weights: Tensor,
    finite: Tensor,
    seed: int,
    *,
    into: list[Tensor],
    times: Tensor | None,
) -> None:
    matrix = torch.stack([torch.cat([*row]) for row in rows])
    matrix = torch.where(finite.unsqueeze(1), matrix, 0.0) * weights.to(matrix.dtype).unsqueeze(1)
    found = handler.combine(matrix, seed)
    if times is not None:
        found = found * times.to(found.dtype)
    for target, part in zip(into, torch.split(found, [len(each) for each in into]), strict=True):
        target.copy_(part)
