"""A TRAINING seed learns beside the host and takes nothing from it: not one bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.kasmina.hosts import HOSTS, batch, training
from tests.kasmina.hosts import loss as job_loss
from tolaria_bus.kasmina import HOST
from tolaria_bus.kasmina.frozen import FrozenParameters
from tolaria_bus.kasmina.side import Health, learn


def generators() -> list[Any]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), numpy_state[1].tolist(), torch.get_rng_state().tolist()]


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("slot", [True, False], ids=["slot", "hook"])
@pytest.mark.parametrize("kind", HOSTS)
def test_the_host_trains_to_the_same_bits_and_the_seed_learns(kind, slot) -> None:
    _, name, path, blueprint = HOSTS[kind]
    alone = training(kind, slot=slot)
    losses = alone.steps(12)
    drawn = generators()

    beside = training(kind, slot=slot)
    beside.grow("a", blueprint, slot=name if slot else path)
    same = beside.steps(2)
    beside.do("START_TRAINING")
    owned = beside.garden.registry.of("a")
    before = {n: p.detach().clone() for n, p in beside.model.named_parameters() if n in owned}
    same += beside.steps(10)

    assert generators() == drawn
    assert torch.equal(torch.stack(losses), torch.stack(same))
    assert_equal(alone.host_tensors(), beside.host_tensors())
    after = dict(beside.model.named_parameters())
    assert any(not torch.equal(before[n], after[n]) for n in owned)


def test_several_seeds_learn_at_once_each_by_itself() -> None:
    runs = []
    for ids in ("ab", "b"):
        run = training("conv2d")
        for seed_id in ids:
            run.grow(seed_id, "channel_scale", slot="1" if seed_id == "a" else "2")
            run.do("START_TRAINING", seed_id)
        run.steps(5)
        runs.append(run)
    both, one = runs
    assert_equal(both.host_tensors(), one.host_tensors())
    names = one.garden.registry.of("b")
    here, there = dict(both.model.named_parameters()), dict(one.model.named_parameters())
    assert all(torch.equal(here[name], there[name]) for name in names)


def test_its_gradient_is_that_of_the_loss_with_its_output_in_place_of_the_hosts() -> None:
    run = training("linear")
    run.grow("a", "residual_mlp")
    model: Any = run.model
    seed = model[2].seed
    nn.init.normal_(seed.project.weight)
    place = run.garden._places.at("2")
    torch.manual_seed(5)
    learn(model, place, lambda: job_loss(model, batch(0)), Health(), FrozenParameters(model))
    found = {name: p.grad.clone() for name, p in seed.named_parameters()}

    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(5)
    with torch.no_grad():
        features = model[1](model[0](batch(0)[0]))
    out = seed(features)
    for layer in list(model)[3:]:
        out = layer(out)
    nn.functional.cross_entropy(out, batch(0)[1]).backward()  # type: ignore[no-untyped-call]
    for name, parameter in seed.named_parameters():
        assert torch.equal(found[name], parameter.grad)


def test_what_is_not_finite_becomes_a_zero_gradient_and_is_counted() -> None:
    run = training("linear")
    run.grow("a", "residual_mlp")
    model: Any = run.model
    place, health, frozen = run.garden._places.at("2"), Health(), FrozenParameters(model)
    learn(model, place, lambda: job_loss(model, batch(0)), health, frozen)
    steps, bad, norm, value, _ = health.numbers()
    assert (steps, bad) == (1, 0)
    learn(model, place, lambda: job_loss(model, batch(1)) * float("nan"), health, frozen)
    assert health.numbers() == [2, 1, norm, value, 0]
    for parameter in model[2].seed.parameters():
        assert not parameter.grad.any()
    assert all(p.grad is None for n, p in model.named_parameters() if ".seed." not in n)


def test_health_is_an_exponential_mean_of_the_finite_steps() -> None:
    health = Health()
    yes, no = torch.tensor(True), torch.tensor(False)
    for norm, finite in [(float("nan"), no), (2.0, yes), (4.0, yes), (float("inf"), no)]:
        health.note(torch.tensor(norm / 2), torch.tensor(norm), finite)
    assert health.numbers() == pytest.approx([4, 2, 2.2, 1.1, 0])
    assert Health(health.numbers()).numbers() == health.numbers()


def test_a_pass_that_raises_leaves_the_host_and_its_generators_as_they_were() -> None:
    alone = training("conv2d")
    alone.steps(3)
    beside = training("conv2d")
    beside.grow("a", "residual_conv")
    beside.do("START_TRAINING")

    def breaks(*_: Any) -> None:
        raise RuntimeError("out of memory\nin the seed")

    beside.model.get_submodule("1.seed").register_forward_pre_hook(breaks)
    beside.steps(3)
    assert_equal(alone.host_tensors(), beside.host_tensors())
    assert beside.side.failed == {"a": "RuntimeError: out of memory in the seed"}
    assert beside.side.passes == 1
    assert beside.garden.registry.owner("0.weight") == HOST


@pytest.mark.parametrize("slot", [True, False], ids=["slot", "hook"])
def test_a_seed_that_begins_with_a_group_norm_learns_beside_a_channels_last_host(slot) -> None:
    beside = training("conv2d", slot=slot)
    beside.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _, name, path, _ = HOSTS["conv2d"]
    beside.grow("a", "norm_scale", slot=name if slot else path)
    beside.do("START_TRAINING")
    beside.steps(3)
    assert beside.side.failed == {}
    assert beside.garden.seed_states()[0].gradient_norm > 0
