"""Heads of attention are removed with all that is theirs, where a module says what that is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.kasmina.hosts import Training, batch
from tolaria_bus.jobs.bytes_lm import ByteTransformer
from tolaria_bus.kasmina import Garden, HeadLayout, Moment, SeedRefused

WIDTH = 2


class Attention(nn.Module):
    """Self-attention by hand: queries and keys together, values apart."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.head_layout = HeadLayout(width=WIDTH, into={"queries_keys": 2, "values": 1}, out="out")
        self.queries_keys = nn.Linear(8, 2 * heads * WIDTH)
        self.values = nn.Linear(8, heads * WIDTH, bias=False)
        self.out = nn.Linear(heads * WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k = self.queries_keys(x).view(n, t, 2, self.heads, WIDTH).permute(2, 0, 3, 1, 4)
        v = self.values(x).view(n, t, self.heads, WIDTH).transpose(1, 2)
        seen = (q @ k.transpose(2, 3)).softmax(3) @ v
        out: Tensor = self.out(seen.transpose(1, 2).reshape(n, t, -1))
        return out


class Reads(nn.Module):
    """Over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.embed = nn.Linear(4, 8)
        self.attention = Attention()
        self.theirs = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.flatten(1, 2))
        x = F.relu(x + self.attention(x))
        x = x + self.theirs(x, x, x, need_weights=False)[0]
        logits: Tensor = self.head(x.mean(1))
        return logits


def run() -> Training:
    model = Reads().train()
    trained = Training(model, Garden(model))
    trained.steps(3)
    return trained


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(batch(5)[0])
    return found


def test_the_rest_of_the_model_hears_what_it_would_with_the_heads_silenced() -> None:
    trained = run()
    attention: Any = trained.model.get_submodule("attention")
    # By hand: of each head its rows of queries, keys and values, and its columns of the output.
    with torch.no_grad():
        norms = [
            sum(
                float(part[head * WIDTH : (head + 1) * WIDTH].double().abs().sum())
                for part in (
                    *attention.queries_keys.weight.chunk(2),
                    attention.values.weight,
                    attention.out.weight.T,
                )
            )
            for head in range(4)
        ]
    gone = sorted(sorted(range(4), key=lambda head: norms[head])[:2])
    silenced = Reads()
    silenced.load_state_dict(trained.model.state_dict())
    with torch.no_grad():
        silenced.attention.out.weight.view(8, 4, WIDTH)[:, gone] = 0.0
    plan, done = trained.prune("attention", 0.5)
    assert (plan.unit, plan.channels, sorted(set(range(4)) - set(plan.keep))) == ("heads", 4, gone)
    torch.testing.assert_close(output(trained.model), output(silenced), rtol=1e-5, atol=1e-6)
    assert done.removed == 2
    assert done.parameters == 2 * (2 * WIDTH * 9 + WIDTH * 8 + WIDTH * 8)
    assert (attention.heads, attention.out.in_features, attention.queries_keys.out_features) == (
        2,
        2 * WIDTH,
        2 * 2 * WIDTH,
    )


def test_it_trains_on_with_the_state_of_what_stayed() -> None:
    trained = run()
    parameter = trained.model.get_parameter("attention.queries_keys.weight")
    before = trained.manager.optimizer.state[parameter]["exp_avg"].clone()
    plan, _ = trained.prune("attention", 0.3)
    after = trained.manager.optimizer.state[parameter]["exp_avg"]
    stayed = before.view(2, 4, WIDTH, 8)[:, list(plan.keep)].reshape(-1, 8)
    assert torch.equal(after, stayed)
    weights = parameter.detach().clone()
    trained.steps(2)
    assert not torch.equal(parameter, weights)


def test_a_model_with_fewer_heads_is_written_down_rebuilt_and_made_whole_again() -> None:
    whole = run()
    plain = whole.garden.structure()
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.prune("attention", 0.5)
    structure = json.loads(json.dumps(whole.garden.structure()))
    model = Reads().train()
    fresh = Training(model, Garden(model))
    fresh.garden.rebuild(structure)
    fresh.model.load_state_dict(whole.model.state_dict())
    assert model.attention.heads == 2
    assert torch.equal(output(fresh.model), output(whole.model))
    whole.garden.rebuild(plain)
    whole.model.load_state_dict(weights)
    assert whole.model.get_submodule("attention").heads == 4
    assert torch.equal(output(whole.model), output(run().model))


def test_a_gate_that_refuses_leaves_every_bit_as_it_was() -> None:
    trained = run()
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    plan = trained.garden.plan_prune("attention", 0.5)
    losses = iter([1.0, 1.06])
    words = "G4_SYSTEM_IMPACT: the held-out loss is 1.06 with the heads' removal and 1 without"
    with pytest.raises(SeedRefused, match=words):
        trained.garden.prune(plan, Moment(trained.position, held_out=lambda: next(losses)))
    after = trained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_cut_is_refused_saying_what_is_in_the_way() -> None:
    def refused(words: str, **layout: Any) -> None:
        model = Reads()
        known = {"width": WIDTH, "into": {"queries_keys": 2, "values": 1}, "out": "out"}
        model.attention.head_layout = HeadLayout(**{**known, **layout})
        with pytest.raises(SeedRefused, match=words) as error:
            Garden(model).plan_prune("attention", 0.5)
        assert error.value.code == "bad_parameter"

    refused("by its layout attention.queries_keys should have 24 features, not 16", width=3)
    refused("names attention.nothing, a NoneType, not a Linear", out="nothing")
    trained = run()
    trained.grow("a", "low_rank", slot="attention.values")
    with pytest.raises(SeedRefused, match=r"the seed 'a' grows behind attention\.values"):
        trained.garden.plan_prune("attention", 0.5)
    with pytest.raises(SeedRefused, match=r"target is 'other'; allowed: embed, attention, "):
        run().garden.plan_prune("other", 0.5)
    one = Reads()
    one.attention = Attention(heads=1)
    with pytest.raises(SeedRefused, match="which has one head only"):
        Garden(one).plan_prune("attention", 0.5)


def test_the_byte_transformer_can_do_without_a_head() -> None:
    torch.default_generator.manual_seed(0)
    model: Any = ByteTransformer(width=96, depth=2, context=8, dropout=0.0)
    text = torch.arange(16).view(2, 8)
    garden = Garden(model)
    plan = garden.plan_prune("blocks.1", 0.4, {"impact": 1e6})
    with torch.no_grad():
        gone = sorted(set(range(3)) - set(plan.keep))
        model.blocks[1].out.weight.view(96, 3, 32)[:, gone] = 0.0
        silenced = model(text)
        garden.prune(plan, Moment(0, held_out=lambda: 1.0))
        assert model.blocks[1].heads == 2
        torch.testing.assert_close(model(text), silenced, rtol=1e-5, atol=1e-6)
    model(text).sum().backward()
    assert model.blocks[1].qkv.weight.grad is not None
