"""Another optimizer class in the middle of a run."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.test_optimizer import Net, bits, equal, saved, train
from tolaria_bus.tolaria.engine import (
    LearningRateController,
    OptimizerManager,
    OptimizerRefused,
    OptimizerStateMismatch,
    RebuildFailed,
)
from tolaria_bus.tolaria.engine.optimizer_classes import factory_of, torch_classes


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01, betas=(0.8, 0.99))


def manager_of(factory: Any = adam, steps: int = 4) -> tuple[Net, OptimizerManager]:
    model = Net()
    manager = OptimizerManager(factory, model)
    train(model, manager, 0, steps)
    return model, manager


def change(manager: OptimizerManager, name: str, **values: Any) -> Any:
    return manager.rebuild(manager.plan_rebuild(name, values))


def figures(manager: OptimizerManager) -> dict[str, float]:
    return {f.name.removeprefix("tolaria.optimizer."): f.value for f in manager.figures()}


@pytest.mark.parametrize("name", sorted(set(torch_classes()) - {"Muon"}))
def test_every_class_of_torch_can_take_over_and_train_on(name):
    model, manager = manager_of()
    change(manager, name.lower())
    assert manager.name == name
    train(model, manager, 4, 6)
    assert all(p.isfinite().all() for p in model.parameters())
    change(manager, "AdamW")
    train(model, manager, 6, 7)
    assert figures(manager)["rebuilds"] == 2


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RAdam"])
def test_the_running_means_of_adams_family_are_kept_bit_for_bit(name):
    model, manager = manager_of()
    before = {key: tensor.clone() for key, tensor in manager.export()[0].items()}
    carried = change(manager, name, beta2=0.95)
    assert equal(manager.export()[0], before)
    assert (set(carried.kept), carried.left) == ({"step", "exp_avg", "exp_avg_sq"}, ())
    # As torch itself goes on from that state.
    other = Net()
    other.load_state_dict(model.state_dict())
    plain = getattr(torch.optim, name)(other.parameters(), lr=0.01, betas=(0.9, 0.95))
    for p, twin in zip(model.parameters(), other.parameters(), strict=True):
        if p.requires_grad:
            plain.state[twin] = {k: v.clone() for k, v in manager.optimizer.state[p].items()}
    train(model, manager, 4, 8)
    for step in range(4, 8):
        plain.zero_grad()
        generator = torch.Generator().manual_seed(step)
        other(torch.randn(8, 3, generator=generator)).square().mean().backward()
        plain.step()
    for p, twin in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, twin, rtol=1e-6, atol=1e-7)


def test_adams_first_moment_is_sgds_momentum_buffer():
    """With beta1 = momentum both classes have seen the same gradients: SGD's buffer is known."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    model = nn.Module()
    model.p = parameter
    manager = OptimizerManager(lambda p: torch.optim.Adam(p, lr=0.0, betas=(0.9, 0.99)), model)
    expected = torch.zeros(5, dtype=torch.float64)
    for _ in range(7):
        parameter.grad = torch.randn(5, dtype=torch.float64)
        expected = 0.9 * expected + parameter.grad
        manager.optimizer.step()
    carried = change(manager, "SGD", momentum=0.9)
    buffer = manager.optimizer.state[parameter]["momentum_buffer"]
    torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=0.0)
    assert carried == (("momentum_buffer",), ("step", "exp_avg", "exp_avg_sq"))


def test_what_would_mean_something_else_begins_anew_and_is_named():
    model, manager = manager_of(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))
    assert change(manager, "Adam") == ((), ("momentum_buffer",))
    assert not manager.optimizer.state
    train(model, manager, 4, 5)
    change(manager, "RMSprop")
    assert not manager.optimizer.state


def test_turning_amsgrad_on_keeps_the_rest():
    model, manager = manager_of()
    before = {key: tensor.clone() for key, tensor in manager.export()[0].items()}
    change(manager, "adamw", amsgrad=True)
    after = manager.export()[0]
    assert equal({key: after[key] for key in before}, before)
    assert torch.equal(after["a.bias/max_exp_avg_sq"], before["a.bias/exp_avg_sq"])
    train(model, manager, 4, 6)


def test_groups_rates_and_names_stay_and_the_controller_follows():
    model, manager = manager_of()
    manager.add_parameters("seed:s", model.grow())
    controller = LearningRateController(manager, "cosine", 100)
    controller.apply(10)
    rates = controller.rates()
    change(manager, "SGD", momentum=0.5, nesterov=True)
    assert controller.apply(10) == ()
    assert controller.rates() == rates
    assert manager.group_names() == ["host", "seed:s"]
    for group in ("host", "seed:s"):
        assert manager.hyperparameters(group)["momentum"] == 0.5
    train(model, manager, 4, 6)
    manager.remove_group("seed:s")


@pytest.mark.parametrize(
    ("name", "values", "field", "words"),
    [
        ("adamant", {}, "optimizer", "Adadelta, Adafactor, Adagrad, Adam"),
        ("LBFGS", {}, "optimizer", "SGD"),
        ("SGD", {"momentum": 1.5}, "momentum", "from 0 to below 1"),
        ("SGD", {"betas": [0.9, 0.9]}, "hyperparameter", "momentum"),
        ("SGD", {"nesterov": True}, "momentum", "above 0"),
        ("Adam", {"lr": 0.1}, "lr", "LEARNING_RATE"),
        ("Adam", {"amsgrad": 3}, "amsgrad", "true or false"),
        ("Adam", {"fused": True}, "hyperparameter", "betas"),
        ("Adam", {"eps": float("nan")}, "eps", "above 0"),
    ],
)
def test_a_class_or_value_that_cannot_be_is_refused_and_changes_nothing(name, values, field, words):
    _, manager = manager_of()
    before = manager.export()[1]
    with pytest.raises(OptimizerRefused) as error:
        manager.plan_rebuild(name, values)
    assert error.value.field == field
    assert words in str(error.value)
    assert manager.export()[1] == before


def test_a_failed_rebuild_leaves_the_old_one_and_is_counted():
    model, manager = manager_of()
    twin, undisturbed = manager_of()
    old = manager.optimizer
    plan = manager.plan_rebuild("Muon", {})  # It takes matrices only, and the net has vectors.
    with pytest.raises(RebuildFailed, match="Muon could not be made, AdamW goes on: ValueError"):
        manager.rebuild(plan)
    assert manager.optimizer is old
    train(model, manager, 4, 8)
    train(twin, undisturbed, 4, 8)
    assert equal(bits(model, manager), bits(twin, undisturbed))
    counted = figures(manager)
    assert (counted["rebuilds"], counted["failures"]) == (0, 1)


@pytest.mark.parametrize("name", ["SGD", "RAdam", "Adam", "Adafactor"])
def test_a_restored_run_has_the_class_it_was_changed_to_and_trains_on_to_the_same_bits(name):
    model, manager = manager_of()
    change(manager, name, **({"momentum": 0.9} if name == "SGD" else {}))
    train(model, manager, 4, 9)
    weights, tensors, meta = saved(model, manager)
    train(model, manager, 9, 14)
    other = Net()
    again = OptimizerManager(adam, other)
    other.load_state_dict(weights)
    again.load(tensors, meta)
    assert again.name == name
    train(other, again, 9, 14)
    assert equal(bits(model, manager), bits(other, again))


def test_a_rollback_goes_back_over_a_change_of_class_even_to_one_that_torch_does_not_have():
    class Own(torch.optim.SGD):
        pass

    model, manager = manager_of(lambda p: Own(p, lr=0.01, momentum=0.9))
    weights, tensors, meta = saved(model, manager)
    train(model, manager, 4, 6)
    expected = {name: tensor.clone() for name, tensor in bits(model, manager).items()}
    change(manager, "Adam")
    train(model, manager, 6, 8)
    model.load_state_dict(weights)
    manager.load(tensors, meta)
    assert manager.name == "Own"
    train(model, manager, 4, 6)
    assert equal(bits(model, manager), expected)


def test_a_state_of_a_class_that_is_not_known_is_refused():
    model, manager = manager_of()
    _, tensors, meta = saved(model, manager)
    with pytest.raises(OptimizerStateMismatch, match="state is of Lion, which can't be made"):
        manager.load(tensors, {**json.loads(json.dumps(meta)), "class": "Lion"})
    assert manager.name == "AdamW"


def test_a_job_may_name_its_optimizer_with_its_hyperparameters():
    model = Net()
    factory = factory_of({"name": "sgd", "lr": 0.5, "momentum": 0.9, "nesterov": True})
    manager = OptimizerManager(factory, model)
    group = manager.param_groups[0]
    assert (manager.name, group["lr"], group["momentum"]) == ("SGD", 0.5, 0.9)
    assert group["fused"]
    assert OptimizerManager(factory_of("Adadelta"), Net()).param_groups[0]["foreach"]


def test_channels_last_parameters_get_their_state_back_in_their_own_layout():
    def net() -> nn.Module:
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 4, 3)
        conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return conv

    def steps(model: nn.Module, manager: OptimizerManager, start: int, stop: int) -> None:
        for step in range(start, stop):
            manager.optimizer.zero_grad()
            x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
            model(x).square().mean().backward()
            manager.optimizer.step()

    model = net()
    manager = OptimizerManager(None, model)
    steps(model, manager, 0, 3)
    weights, tensors, meta = saved(model, manager)
    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
    steps(model, manager, 3, 6)
    other = net()
    other.load_state_dict(weights)
    again = OptimizerManager(None, other)
    again.load(packed, meta)
    steps(other, again, 3, 6)
    assert equal(bits(model, manager), bits(other, again))
