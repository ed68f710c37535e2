"""A job that draws from Python's and numpy's generators is repeated by its seed like any other."""

from __future__ import annotations

import random

import numpy as np
from torch import Tensor, nn

from tests.trainer.conftest import Moons


class Drawing(nn.Module):
    """Noise of its own, from the generators that torch doesn't know."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (1.0 + 0.1 * random.random() + 0.1 * np.random.rand())  # noqa: NPY002


class DrawsOutside(Moons):
    def model(self) -> nn.Module:
        return nn.Sequential(Drawing(), super().model())


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(make_run) -> None:
    found: list[str] = []
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        random.seed(name)
        np.random.seed(len(found))  # noqa: NPY002
        found.append(make_run(name, job=DrawsOutside(), seed=seed).train().weights_sha256)
    assert found[0] == found[1] != found[2]


def test_stopped_and_resumed_it_ends_in_the_same_bits(make_run) -> None:
    reference = make_run("reference", job=DrawsOutside()).train()
    make_run("run", job=DrawsOutside(), steps=9).train()
    random.seed("another process")
    assert make_run("run", job=DrawsOutside()).train().weights_sha256 == reference.weights_sha256
