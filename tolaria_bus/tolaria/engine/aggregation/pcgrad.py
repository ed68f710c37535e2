"""PCGrad: a task's gradient gives up what of it points against another task's.

Yu et al., *Gradient Surgery for Multi-Task Learning* (2020), algorithm 1: for each task i, with
g = g_i, go through the other tasks j in random order; where g·g_j < 0, take g - (g·g_j)/‖g_j‖² g_j
for g. It is against the *original* g_j each time. What comes out is a combination of the g_j, so
all of it can be done on their Gramian, and the gradients are touched once, at the end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def orders(tasks: int, generator: torch.Generator) -> list[list[int]]:
    """Draw for each task in which order it meets the others."""
    drawn = []
    for task in range(tasks):
        others = [other for other in range(tasks) if other != task]
        drawn.append([others[i] for i in torch.randperm(tasks - 1, generator=generator).tolist()])
    return drawn


def project(gram: Tensor, meets: Sequence[Sequence[int]]) -> Tensor:
    """Project every task's gradient; nothing waits for the device.

    Args:
        gram: Of the gradients, shape (tasks, tasks), finite. A task of zeros changes no other.
        meets: From ``orders``.

    Returns:
        Shape (tasks, tasks): row i has the coefficients of projected gradient i in the g_j.
    """
    one = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    squares = gram.diagonal()
    made = one
    for others in zip(*meets, strict=True):
        # Stacked views: an index tensor would have to be sent to the device.
        towards = torch.stack([gram[other] for other in others])
        dots = (made * towards).sum(1)
        against = dots < 0
        size = torch.stack([squares[other] for other in others])
        step = torch.where(against, dots / size, 0.0)
        made = made - step.unsqueeze(1) * torch.stack([one[other] for other in others])
    return made
