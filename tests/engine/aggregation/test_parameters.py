"""Which parameters get a gradient, and how it may lie in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.aggregation.scene import (
    Scene,
    batch,
    flat,
    mixed,
    shared,
)
from tests.engine.aggregation.vectors import paper
from tolaria_bus.tolaria.engine import JobError, OptimizerManager
from tolaria_bus.tolaria.engine.aggregation.pcgrad import orders
from tolaria_bus.tolaria.engine.seeding import Domain, mix

POSITION = 7


def test_a_parameter_that_the_loss_does_not_reach_gets_none() -> None:
    scene = Scene(("STABILIZE",))
    unused = nn.Parameter(torch.ones(2))
    scene.model.register_parameter("unused", unused)
    scene.manager.add_parameters("host.1", {"unused": unused})
    frozen = scene.model[0].bias.requires_grad_(False)
    scene.step(batch(), 0, 1)
    assert unused.grad is None
    assert frozen.grad is None
    assert scene.model[0].weight.grad is not None


def test_a_gradient_that_autograd_shares_between_parameters_is_not_added_to_itself() -> None:
    class Sums(nn.Module):
        """Its parameters get one and the same tensor, two of them expanded from one number."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Parameter(torch.zeros(8)) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + (self.a + self.b) + (self.c + self.d).sum()

    scene = Scene(("STABILIZE",))
    sums = Sums()
    scene.model[1] = nn.Sequential(nn.Tanh(), sums)
    scene.manager.add_parameters(
        "host.1", {f"1.1.{name}": parameter for name, parameter in sums.named_parameters()}
    )
    shares = mixed(12, 1)
    by_task, weights = scene.by_task(batch(), shares), scene.weights()
    rows = [flat(each, shared(scene)) for each in by_task]
    generator = torch.Generator().manual_seed(mix(3, Domain.AGGREGATION, 1, POSITION))
    expected = sum(w * g for w, g in zip(weights, paper(rows, orders(2, generator)), strict=True))
    scene.garden.says = shares
    scene.step(batch(), POSITION, 1)
    found = {name: g.double() for name, g in scene.gradients().items()}
    torch.testing.assert_close(flat(found, shared(scene)), expected, rtol=1e-4, atol=1e-6)


def test_a_parameter_may_be_frozen_between_two_steps() -> None:
    scene = Scene(("STABILIZE",))
    scene.step(batch(), 0, 1)
    before = scene.model[0].weight.requires_grad_(False).clone()
    scene.step(batch(), 1, 1)
    assert torch.equal(scene.model[0].weight, before)


def test_sparse_gradients_are_an_error_of_one_line() -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 4, sparse=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = x + self.table(torch.arange(len(x)) % 3)
            return found

    scene = Scene(("STABILIZE",))
    embeds: Any = Embeds()
    scene.model[0] = nn.Sequential(embeds, scene.model[0])
    scene.manager.add_parameters("host.1", {"0.0.table.weight": embeds.table.weight})
    with pytest.raises(JobError, match="a gradient is sparse"):
        scene.step(batch(), 0, 1)


def test_the_registry_decides_and_the_optimizer_manager_is_asked_anew() -> None:
    scene = Scene(("STABILIZE",))
    scene.step(batch(), 0, 1)
    assert [r.task for r in scene.tasks.watch.readings()] == ["host", "a"]
    scene.grow("b", "5", "STABILIZE")
    scene.step(batch(), 1, 1)
    assert [r.task for r in scene.tasks.watch.readings()] == ["host", "a", "b"]
    for name in scene.garden.registry.of("b"):
        assert name in scene.gradients()
    scene.do("CULL", "a")
    scene.manager.remove_group("seed:a")
    scene.step(batch(), 2, 1)
    assert [r.task for r in scene.tasks.watch.readings()] == ["host", "b"]


def test_a_manager_of_another_optimizer_is_no_hindrance() -> None:
    scene = Scene(optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    for position in range(3):
        scene.step(batch(position), position, 1)
    assert isinstance(scene.manager, OptimizerManager)
    assert all(torch.isfinite(p).all() for p in scene.model.parameters())
