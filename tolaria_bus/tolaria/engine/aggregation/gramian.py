"""The Gramian of gradients: all their dot products, exact enough to tell which are in conflict.

It is summed by blocks, each in the gradients' own precision, the blocks' sums in float64: the
error, relative to the lengths, is about 1e-7, where float32 throughout has 7e-4 for some millions
of elements.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from tolaria_bus.tolaria.engine.aggregation.blocks import blocks


def gramian(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the dot products of every two rows.

    Args:
        rows: Of each task, its gradients as 1-dimensional tensors, the same sizes in each row.

    Returns:
        Shape (tasks, tasks), float64, symmetric; a row that isn't finite is not finite on the
        diagonal. So is one whose square over a block is beyond its own precision.
    """
    count = len(rows)
    parts = [
        _of_block([each[0] if len(each) == 1 else torch.cat(each) for each in block])
        for block in blocks(rows)
    ]
    if not parts:
        return torch.zeros(count, count, dtype=torch.float64)
    if not parts[0].is_cpu:
        return torch.stack(parts).sum(0)
    sums = torch.stack(parts).sum(0).unbind()
    pairs = dict(zip(combinations_with_replacement(range(count), 2), sums, strict=True))
    return torch.stack(
        [pairs[min(i, j), max(i, j)] for i in range(count) for j in range(count)]
    ).view(count, count)


def _of_block(rows: list[Tensor]) -> Tensor:
    """On a CPU the products of each pair, else their matrix; float64."""
    if not rows[0].is_cpu:
        return matrix_of(rows)
    if rows[0].dtype in {torch.float16, torch.bfloat16}:
        rows = [row.double() for row in rows]
    # It runs in many lanes: what is summed one by one is some thousand elements.
    return torch.stack(
        [torch.dot(a, b) for a, b in combinations_with_replacement(rows, 2)]
    ).double()


def matrix_of(rows: list[Tensor]) -> Tensor:
    """The Gramian of one block in one product, for an accelerator.

    In float32 that may multiply in TF32, which is off by 1e-3.
    """
    stacked = torch.stack(rows).double()
    product = stacked @ stacked.mT
    return (product + product.mT) / 2
