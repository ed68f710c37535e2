"""Channels are removed with all that they go into, and nothing else changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.kasmina.hosts import Training, output
from tolaria_bus.kasmina import Garden, Moment, SeedRefused, SeedSlot


class Net(nn.Module):
    """Two convolutions and two linear layers; pixels are flattened between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.slot = SeedSlot(6)
        self.body = nn.Conv2d(6, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 4, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.slot(F.relu(self.stem(images)))
        x = F.max_pool2d(F.relu(self.norm(self.body(x))), 2)
        x = F.dropout(x.flatten(1), 0.1, self.training)
        logits: Tensor = self.head(torch.tanh(self.hidden(x)))
        return logits


def run() -> Training:
    model = Net().train()
    trained = Training(model, Garden(model))
    trained.steps(3)
    return trained


def test_the_rest_of_the_model_hears_what_it_would_with_the_channels_silenced() -> None:
    trained = run()
    model: Any = trained.model
    plan = trained.garden.plan_prune("body", 0.5)
    gone = [channel for channel in range(8) if channel not in plan.keep]
    # By hand: the four filters of the smallest L1 norm, and their four pixels each in `hidden`.
    norms = model.body.weight.detach().abs().sum((1, 2, 3))
    assert gone == sorted(norms.argsort()[:4].tolist())
    silenced = Net()
    silenced.load_state_dict(model.state_dict())
    with torch.no_grad():
        silenced.hidden.weight.view(10, 8, 4)[:, gone] = 0.0
    _, done = trained.prune("body", 0.5)
    torch.testing.assert_close(output(model), output(silenced), rtol=1e-5, atol=1e-6)
    assert done.removed == 4
    assert done.parameters == 4 * (6 * 9 + 1) + 4 * 2 + 10 * 16
    assert model.body.weight.shape == (4, 6, 3, 3)
    assert (model.body.out_channels, model.norm.num_features, model.hidden.in_features) == (
        4,
        4,
        16,
    )
    assert len(model.norm.running_mean) == 4


@pytest.mark.parametrize("target", ["body", "hidden"])
def test_it_trains_on_with_the_state_of_what_stayed(target) -> None:
    trained = run()
    parameter = trained.model.get_parameter(f"{target}.weight")
    before = trained.manager.optimizer.state[parameter]["exp_avg"].clone()
    plan, _ = trained.prune(target, 0.3)
    after = trained.manager.optimizer.state[parameter]["exp_avg"]
    assert torch.equal(after, before[list(plan.keep)])
    weights = parameter.detach().clone()
    trained.steps(2)
    assert not torch.equal(parameter, weights)
    trained.prune(target, 0.3)
    trained.steps(1)


def test_a_gate_that_refuses_leaves_every_bit_as_it_was() -> None:
    trained = run()
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    structure = trained.garden.structure()
    plan = trained.garden.plan_prune("hidden", 0.9)
    losses = iter([1.0, 1.06])
    words = "G4_SYSTEM_IMPACT: the held-out loss is 1.06 with the channels' removal and 1 without"
    with pytest.raises(SeedRefused, match=words) as no:
        trained.garden.prune(plan, Moment(trained.position, held_out=lambda: next(losses)))
    assert no.value.code == "gate_failed"
    after = trained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trained.garden.structure() == structure


def test_a_pruned_model_is_written_down_rebuilt_and_made_whole_again() -> None:
    whole = run()
    plain = whole.garden.structure()
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    state = whole.manager.export()
    first = {name: tensor.clone() for name, tensor in state[0].items()}
    whole.prune("body", 0.5)
    whole.prune("body", 0.3)
    whole.garden.germinate(whole.garden.plan_germinate("a", "low_rank", slot="hidden"), seed=0)
    structure = json.loads(json.dumps(whole.garden.structure()))
    model = Net().train()
    fresh = Training(model, Garden(model))
    fresh.garden.rebuild(structure)
    fresh.model.load_state_dict(whole.model.state_dict())
    assert torch.equal(output(fresh.model), output(whole.model))
    assert fresh.garden.structure() == structure
    # A rollback to before the cuts.
    whole.garden.rebuild(plain)
    whole.model.load_state_dict(weights)
    whole.manager.load(first, state[1])
    assert whole.garden.structure() == plain
    again = run()
    assert torch.equal(whole.steps(2)[-1], again.steps(2)[-1])


class WrongSlot(Net):
    def __init__(self) -> None:
        super().__init__()
        self.slot = SeedSlot(5)


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.tied.weight
        self.lone = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one(x)
        x = self.twice(self.two(x))
        out: Tensor = self.lone(self.again(self.tied(self.twice(x))))
        return out


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "target", "fraction", "words"),
    [
        (WrongSlot(), "stem", 0.5, "go into slot, a SeedSlot of 5 features"),
        (Net(), "norm", 0.5, "allowed: stem, body, hidden, head"),
        (Net(), "head", 0.5, "go into output"),
        (Net(), "body", 0.0, "fraction is 0.0; allowed: above 0 and below 1"),
        (Net(), "body", float("nan"), "fraction is nan"),
        (Adds(), "one", 0.5, "go into <built-in function add>"),
        (Adds(), "two", 0.5, "twice, which is called twice"),
        (Adds(), "twice", 0.5, "it is called 2 times"),
        (Adds(), "tied", 0.5, "are one parameter"),
        (Branches(), "layer", 0.5, "can't be traced"),
    ],
)
def test_what_cannot_be_cut_is_refused_saying_what_is_in_the_way(
    model, target, fraction, words
) -> None:
    with pytest.raises(SeedRefused, match=words) as error:
        Garden(model).plan_prune(target, fraction)
    assert error.value.code == "bad_parameter"


def test_an_empty_slot_becomes_narrower_with_its_channels_and_wide_again() -> None:
    trained = run()
    model: Any = trained.model
    plain = trained.garden.structure()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = trained.manager.export()
    first = {name: tensor.clone() for name, tensor in state[0].items()}
    _, done = trained.prune("stem", 0.5)
    assert (model.slot.features, model.body.in_channels, done.removed) == (3, 3, 3)
    assert [view.features for view in trained.garden.slots() if view.name == "slot"] == [3]
    # What grows there now is as wide as the slot.
    trained.grow("a", "residual_conv", slot="slot")
    trained.steps(2)
    structure = json.loads(json.dumps(trained.garden.structure()))
    other = Net().train()
    fresh = Training(other, Garden(other))
    fresh.garden.rebuild(structure)
    fresh.model.load_state_dict(model.state_dict())
    assert torch.equal(output(other), output(model))
    with pytest.raises(SeedRefused, match="go into slot, where a seed grows"):
        trained.garden.plan_prune("stem", 0.3)
    # A rollback to before the cut.
    rebuilt = trained.garden.rebuild(plain)
    assert list(rebuilt.removed) == ["a"]
    trained.manager.remove_group("seed:a")
    model.load_state_dict(weights)
    trained.manager.load(first, state[1])
    trained.position = 3
    assert model.slot.features == 6
    assert torch.equal(trained.steps(2)[-1], run().steps(2)[-1])


def test_a_seed_of_one_name_in_a_slot_of_another_width_is_another_seed() -> None:
    trained = run()
    model: Any = trained.model
    trained.grow("a", "residual_conv", slot="slot")
    wide = json.loads(json.dumps(trained.garden.structure()))
    trained.do("CULL")
    trained.garden.rebuild({**wide, "seeds": []})
    trained.prune("stem", 0.5)
    trained.grow("a", "residual_conv", slot="slot")
    rebuilt = trained.garden.rebuild(wide)
    assert list(rebuilt.removed) == ["a"]
    assert [each.seed_id for each in rebuilt.germinated] == ["a"]
    assert model.slot.seed(torch.zeros(1, 6, 4, 4)).shape == (1, 6, 4, 4)


def test_a_layer_with_a_seed_behind_it_is_not_pruned_and_others_are() -> None:
    trained = run()
    trained.grow("a", "low_rank", slot="body")
    with pytest.raises(SeedRefused, match="the seed 'a' grows behind body"):
        trained.garden.plan_prune("body", 0.5)
    trained.prune("hidden", 0.5)
    trained.steps(1)
