"""Channels aren't cut where something has a hand in them that no trace shows."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils.prune import identity

from tests.kasmina.hosts import Training
from tolaria_bus.kasmina import Garden, HeadLayout, Moment, SeedRefused, SeedSlot

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")


class Net(nn.Module):
    """The channels of ``layer`` leave ``inner`` and ``block``, and end in ``taker``."""

    def __init__(self) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.first = nn.Linear(16, 8)
        self.block: Any = nn.Sequential(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh()), SeedSlot(8, kind="linear")
        )
        self.norm: nn.Module = nn.BatchNorm1d(8)
        self.flat: nn.Module = nn.Flatten()
        self.tail = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block(torch.relu(self.first(images.flatten(1))))
        logits: Tensor = self.head(self.tail(self.flat(self.norm(x))))
        return logits


LAYER, TAKER = "block.0.0", "tail.0"
HOOKS = {
    "forward hook": lambda module: module.register_forward_hook(_as_it_was),
    "forward-pre hook": lambda module: module.register_forward_pre_hook(lambda module, args: None),
}


def _as_it_was(module: nn.Module, args: Any, output: Any) -> Any:
    # Only tensors: while it is traced nothing is to be seen of it.
    return output * 2 if isinstance(output, Tensor) else None


def refused(model: nn.Module, words: str, target: str = LAYER) -> None:
    with pytest.raises(SeedRefused, match=re.escape(words)) as error:
        Garden(model).plan_prune(target, 0.5)
    assert error.value.code == "bad_parameter"


def _parametrized(layer: nn.Module) -> None:
    parametrizations.spectral_norm(layer)


def _masked(layer: nn.Module) -> None:
    identity(layer, "weight")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("make", [weight_norm, spectral_norm, _masked])
def test_a_weight_that_is_computed_anew_in_each_pass_is_not_cut(make) -> None:
    for path, words in ((LAYER, "it"), (TAKER, f"its channels go into {TAKER}, which")):
        model = Net()
        make(model.get_submodule(path))
        refused(model, f"target is '{LAYER}': {words} has a weight that is made of other tensors")


def test_nor_is_a_parametrized_one() -> None:
    model = Net()
    _parametrized(model.block[0][0])
    refused(model, f"target is '{LAYER}': it is parametrized")
    model = Net()
    _parametrized(model.tail[0])
    refused(model, f"its channels go into {TAKER}, which is parametrized")


@pytest.mark.parametrize("hook", HOOKS)
def test_nor_what_a_hook_sees(hook) -> None:
    for path, words in (
        (LAYER, "it"),
        ("block.0.1", "its channels go into block.0.1, which"),
        ("block.1", "its channels go into block.1, which"),
        ("norm", "its channels go into norm, which"),
        ("flat", "its channels go into flat, which"),
        (TAKER, f"its channels go into {TAKER}, which"),
        # Around them: what comes out of these, or goes into that, are the channels.
        ("block.0", "its channels pass the border of block.0, which"),
        ("block", "its channels pass the border of block, which"),
        ("tail", "its channels pass the border of tail, which"),
    ):
        model = Net()
        HOOKS[hook](model.get_submodule(path))
        refused(model, f"target is '{LAYER}': {words} has a {hook}")


def test_a_forward_that_a_module_was_given_is_in_the_way_too() -> None:
    model = Net()
    plain = model.tail[0].forward
    model.tail[0].forward = lambda x: plain(x) * 2
    refused(model, f"its channels go into {TAKER}, which has a forward of its own")


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_elsewhere_are_in_nobodys_way(hook) -> None:
    model = Net()
    for path in ("first", "head", "tail.1", ""):
        HOOKS[hook](model.get_submodule(path))
    weight_norm(model.head)
    spectral_norm(model.first)
    trained = Training(model.train(), Garden(model))
    plan = trained.garden.plan_prune(LAYER, 0.5, {"impact": 1e6})
    trained.garden.prune(plan, Moment(0, held_out=trained.held_out))
    assert model.tail[0].in_features == 4
    # Both ends of the channels' way are inside.
    outer = nn.Sequential(Net(), nn.Linear(3, 3))
    HOOKS[hook](outer[0])
    Garden(outer).plan_prune(f"0.{LAYER}", 0.5)


def test_a_seed_behind_a_module_that_the_channels_leave_is_in_the_way() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 8)

        def forward(self, images: Tensor) -> Tensor:
            return torch.relu(self.layer(images.flatten(1)))

    model = nn.Sequential(Block(), nn.Linear(8, 3))
    garden = Garden(model, {"0": ("linear", 8)})
    garden.plan_prune("0.layer", 0.5)
    garden.germinate(garden.plan_germinate("a", "low_rank", slot="0"), seed=0)
    with pytest.raises(SeedRefused, match="the seed 'a' grows behind 0"):
        garden.plan_prune("0.layer", 0.5)


def test_a_weight_that_is_used_outside_of_its_layer_is_not_cut() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 6)
            self.two = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.two(torch.relu(self.one(x))), self.two.weight)

    refused(Tied(), "two.weight is used outside of its layer, too", "one")


def test_layers_that_no_pass_calls_are_not_offered() -> None:
    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(8, 8)
            # Torch's encoder layer computes with these itself.
            self.fused = nn.TransformerEncoderLayer(3, 1, 4, batch_first=True)
            spectral_norm(self.head)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.fused(super().forward(images)[:, None])[:, 0]
            return logits

    with pytest.raises(SeedRefused) as error:
        Garden(Unused()).plan_prune("nothing", 0.5)
    assert error.value.reason == (
        f"target is 'nothing'; allowed: first, {LAYER}, {TAKER}, fused.self_attn"
    )
    refused(Unused(), "it is called 0 times in a pass", "fused.linear1")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.head_layout = HeadLayout(width=2, into={"qkv": 3}, out="out")
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)


@pytest.mark.parametrize("path", ["qkv", "out"])
def test_heads_go_by_plain_layers_alone(path) -> None:
    for make, words in (
        (HOOKS["forward hook"], "has a forward hook"),
        (weight_norm, "has a weight that is made of other tensors"),
    ):
        model = nn.Sequential(Attention())
        make(model[0].get_submodule(path))  # type: ignore[no-untyped-call]
        refused(model, f"target is '0': its 0.{path} {words}", "0")
