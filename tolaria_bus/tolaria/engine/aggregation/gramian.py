"""The Gramian of gradients: all their dot products, exact enough to tell which are in conflict."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tolaria_bus.tolaria.engine.aggregation.blocks import blocks

# Products summed in float32 before float64 takes over: the error, relative to the lengths, stays
# below 1e-6, where float32 throughout has 7e-4 for some millions of elements.
_RUN = 1 << 12


def gramian(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the dot products of every two rows.

    Args:
        rows: Of each task, its gradients as 1-dimensional tensors, the same sizes in each row.

    Returns:
        Shape (tasks, tasks), float64, symmetric; a row that isn't finite is not finite on the
        diagonal. So is one whose square, over four thousand elements, is beyond float32.
    """
    found: Tensor | None = None
    for block in blocks(rows):
        part = _of_block([parts[0] if len(parts) == 1 else torch.cat(parts) for parts in block])
        found = part if found is None else found.add_(part)
    if found is None:
        return torch.zeros(len(rows), len(rows), dtype=torch.float64)
    # Which of two equal products is summed in which order is the kernel's choice.
    return (found + found.mT) / 2


def _of_block(rows: list[Tensor]) -> Tensor:
    stacked = torch.stack(rows)
    if not stacked.is_cpu:
        # In float32 an accelerator may multiply in TF32, which is off by 1e-3.
        return _times_itself(stacked.double())
    if stacked.dtype in {torch.float16, torch.bfloat16}:
        stacked = stacked.float()
    whole = stacked.shape[1] // _RUN * _RUN
    found = stacked.new_zeros(len(rows), len(rows), dtype=torch.float64)
    if whole:
        runs = stacked[:, :whole].view(len(rows), -1, _RUN).transpose(0, 1)
        found += _times_itself(runs).sum(0, dtype=torch.float64)
    if whole < stacked.shape[1]:
        found += _times_itself(stacked[:, whole:])
    return found


def _times_itself(matrix: Tensor) -> Tensor:
    return matrix @ matrix.mT
