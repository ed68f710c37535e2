"""PCGrad as the paper has it, on vectors; and gradients to try it on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor


def paper(gradients: Sequence[Tensor], meets: Sequence[Sequence[int]]) -> list[Tensor]:
    """Algorithm 1 of Yu et al. (2020), line by line, in float64."""
    originals = [gradient.double() for gradient in gradients]
    projected = []
    for i, order in enumerate(meets):
        g = originals[i].clone()
        for j in order:
            dot = torch.dot(g, originals[j])
            if dot < 0:
                g = g - dot / torch.dot(originals[j], originals[j]) * originals[j]
        projected.append(g)
    return projected


@st.composite
def conflicts(draw: st.DrawFn) -> tuple[Tensor, list[list[int]]]:
    """Some gradients (tasks, elements) in float64, and an order for each."""
    tasks = draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    elements = draw(st.integers(tasks, 12))
    gradients = torch.randn(tasks, elements, generator=generator, dtype=torch.float64)
    others = [[j for j in range(tasks) if j != i] for i in range(tasks)]
    return gradients, [draw(st.permutations(each)) for each in others]
