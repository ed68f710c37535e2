"""Gradients of several tasks cut alike into blocks of a few thousand elements.

Nothing is copied: a block's parts are views of the gradients. So a pass over all of them needs no
flat copy, and on a CPU a block of every task stays in the cache while it is worked on.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Elements of a block: on a CPU what fits into a core's cache for all tasks together, elsewhere, for
# each task, as many as keep launches few and what is made of a block small.
_CPU, _DEVICE = 1 << 18, 1 << 20

Block = list[list[Tensor]]
"""For each row the same pieces: 1-dimensional views."""


def as_rows(rows: Sequence[Sequence[Tensor | None]], like: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return gradients as 1-dimensional tensors of one element order.

    Args:
        rows: Of each task, one for each of ``like``; None: zeros.
        like: Dense tensors; the order is that of their memory.

    Returns:
        Of each task, views where a gradient lies as it should, else copies.
    """
    return [
        [_flat(_laid_out(gradient, model)) for gradient, model in zip(row, like, strict=True)]
        for row in rows
    ]


def flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return dense tensors as 1-dimensional views in the order of their memory."""
    return [_flat(tensor) for tensor in tensors]


def blocks(rows: Sequence[Sequence[Tensor]]) -> Iterator[Block]:
    """Cut 1-dimensional tensors, the same sizes in every row, into blocks.

    A large tensor is cut; small ones of one dtype go together.
    """
    first = rows[0]
    size = _CPU // len(rows) if first and first[0].is_cpu else _DEVICE
    gathered: list[int] = []
    elements = 0
    for index, tensor in enumerate(first):
        count = tensor.numel()
        if gathered and (
            elements + min(count, size) > size or tensor.dtype != first[gathered[0]].dtype
        ):
            yield [[row[i] for i in gathered] for row in rows]
            gathered, elements = [], 0
        if count <= size:
            gathered.append(index)
            elements += count
            continue
        for start in range(0, count, size):
            yield [[row[index][start : start + size]] for row in rows]
    if gathered:
        yield [[row[i] for i in gathered] for row in rows]


def _laid_out(gradient: Tensor | None, model: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(model)
    if gradient.stride() == model.stride() and gradient.dtype == model.dtype:
        return gradient
    # Autograd hands out expanded ones, too.
    return torch.empty_like(model).copy_(gradient)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))
