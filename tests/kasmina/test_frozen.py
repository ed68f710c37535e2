"""What a host's forward makes of parameters without a gradient is made once a step, not twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kasmina.hosts import Training, batch
from tests.kasmina.hosts import loss as job_loss
from tests.kasmina.test_side import assert_equal
from tolaria_bus.kasmina import Garden, SeedSlot
from tolaria_bus.kasmina.frozen import FrozenParameters


class Momentum(nn.Module):
    """A momentum encoder beside a frozen backbone."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.way = way
        self.backbone = nn.Linear(16, 8).requires_grad_(False)
        self.encoder = nn.Linear(8, 8)
        self.target = nn.Linear(8, 8).requires_grad_(False)
        self.slot = SeedSlot(8, "linear")
        self.head = nn.Linear(8, 3)

    @torch.no_grad()
    def follow(self) -> None:
        for old, new in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            if self.way == "in place":
                old.lerp_(new, 0.1)
            elif self.way == "another tensor":
                old.data = 0.9 * old.data + 0.1 * new.data
            else:
                old.data.mul_(0.9).add_(0.1 * new.data)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.follow()
        x = self.backbone(x.flatten(1))
        logits: Tensor = self.head(self.slot(self.encoder(x) + self.target(x)))
        return logits


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts copies that are made of some tensors."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of = {parameter.data_ptr() for parameter in of.parameters()}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        copies = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)
        if func in copies and args[0].data_ptr() in self.of:
            self.count += 1
        return func(*args, **kwargs or {})


def training(way: str) -> Training:
    model = Momentum(way)
    return Training(model, Garden(model))


@pytest.mark.parametrize("way", ["in place", "another tensor", "behind autograd's back"])
def test_a_momentum_encoder_follows_as_without_the_seed(way) -> None:
    alone = training(way)
    losses = alone.steps(8)
    beside = training(way)
    same = beside.steps(2)
    for seed_id, slot in [("a", "slot"), ("b", "head")]:
        beside.grow(seed_id, "residual_mlp", slot=slot)
        beside.do("START_TRAINING", seed_id)
        same += beside.steps(3)
    assert torch.equal(torch.stack(losses), torch.stack(same))
    assert_equal(alone.host_tensors(), beside.host_tensors())
    assert beside.side.failed == {}


def test_of_a_backbone_that_nothing_changes_a_copy_is_made_once() -> None:
    run = training("in place")
    run.grow("a", "residual_mlp", slot="slot")
    run.do("START_TRAINING")
    model: Any = run.model
    with Copies(model.backbone) as backbone, Copies(model.target) as target:
        run.steps(5)
    assert backbone.count == 2  # Weight and bias.
    assert target.count == 2 * 5
    # Weights were loaded: what was known of them is known no more.
    model.load_state_dict({name: t.clone() for name, t in model.state_dict().items()})
    with Copies(model.backbone) as backbone:
        run.steps(3)
    assert backbone.count == 2


def test_they_are_as_before_where_the_pass_raises() -> None:
    model = Momentum("in place").train()
    before = model.target.weight.clone()
    frozen, seed = FrozenParameters(model), nn.Linear(1, 1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), frozen.kept(seed):
            model(torch.zeros(1, 7))
        assert torch.equal(model.target.weight, before)


def test_a_change_that_came_too_late_to_be_undone_is_an_error_that_names_it() -> None:
    model = Momentum("in place").eval()
    frozen, seed = FrozenParameters(model), nn.Linear(1, 1)
    with frozen.kept(seed):
        job_loss(model, batch(0))
    model.train()
    words = "changes target.weight, target.bias, which need no gradient"
    with pytest.raises(RuntimeError, match=words), frozen.kept(seed):
        job_loss(model, batch(0))
    after = model.target.weight.clone()
    with frozen.kept(seed):
        job_loss(model, batch(0))
    assert torch.equal(model.target.weight, after)


def test_a_seeds_own_parameters_are_its_affair() -> None:
    model = Momentum("in place")
    with FrozenParameters(model).kept(model.target):
        model(batch(0)[0])
    reference = Momentum("in place")
    reference(batch(0)[0])
    assert torch.equal(model.target.weight, reference.target.weight)
