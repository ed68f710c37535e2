import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tolaria_bus.tolaria.engine import (
    JobError,
    OptimizerManager,
    OptimizerStateMismatch,
    default_optimizer,
)

Make = Callable[[Any], torch.optim.Optimizer]

ADAM: list[Make] = [
    lambda p: torch.optim.AdamW(p, lr=0.01),
    lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True, amsgrad=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
]
OTHERS: list[Make] = [
    lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    lambda p: torch.optim.SGD(p, lr=0.01),
    lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.1),
    lambda p: torch.optim.NAdam(p, lr=0.01),
    lambda p: torch.optim.RAdam(p, lr=0.01),
    lambda p: torch.optim.Adafactor(p, lr=0.01),
    lambda p: torch.optim.Adagrad(p, lr=0.01),
]


class Net(nn.Module):
    seed: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.seed = None

    def grow(self) -> dict[str, nn.Parameter]:
        self.seed = seed = nn.Linear(4, 4)
        for parameter in seed.parameters():
            nn.init.constant_(parameter, 0.25)
        return {f"seed.{name}": p for name, p in seed.named_parameters()}

    def forward(self, x):
        x = self.a(x)
        return self.b(x if self.seed is None else x + self.seed(x))


def train(model: Net, manager: OptimizerManager, start: int, stop: int) -> None:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        manager.optimizer.zero_grad()
        model(torch.randn(8, 3, generator=generator)).square().mean().backward()
        manager.optimizer.step()


def bits(model: nn.Module, manager: OptimizerManager) -> dict[str, torch.Tensor]:
    tensors, _ = manager.export()
    return {**model.state_dict(), **tensors}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def saved(model: nn.Module, manager: OptimizerManager):
    tensors, meta = manager.export()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return weights, {n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(meta))


def test_the_default_is_adamw_in_its_fastest_form():
    model = Net()
    manager = OptimizerManager(None, model)
    group = manager.param_groups[0]
    assert (manager.name, group["name"], group["lr"], group["fused"]) == (
        "AdamW",
        "host",
        1e-3,
        True,
    )
    assert manager.parameter_names() == ["a.weight", "a.bias", "b.weight", "b.bias"]
    half = default_optimizer([nn.Parameter(torch.zeros(1, dtype=torch.complex64))])
    assert half.param_groups[0]["foreach"]


@pytest.mark.parametrize("factory", ADAM + OTHERS)
def test_a_restored_optimizer_trains_on_to_the_same_bits(factory):
    model = Net()
    manager = OptimizerManager(factory, model)
    train(model, manager, 0, 5)
    manager.add_parameters("seed:s", model.grow())
    manager.set_hyperparameters({}, "seed:s")
    train(model, manager, 5, 9)
    weights, tensors, meta = saved(model, manager)
    train(model, manager, 9, 14)
    other = Net()
    other.grow()
    other.load_state_dict(weights)
    again = OptimizerManager(factory, other)
    again.remove_parameters(["seed.weight", "seed.bias"])
    again.load(tensors, meta)
    train(other, again, 9, 14)
    assert equal(bits(model, manager), bits(other, again))
    assert again.group_names() == ["host", "seed:s"]


@pytest.mark.parametrize("factory", ADAM)
def test_a_rollback_in_place_goes_back_over_a_cull_and_a_germination(factory):
    model = Net()
    manager = OptimizerManager(factory, model)
    manager.add_parameters("seed:s", model.grow())
    train(model, manager, 0, 4)
    weights, tensors, meta = saved(model, manager)
    train(model, manager, 4, 6)
    expected = {name: tensor.clone() for name, tensor in bits(model, manager).items()}
    manager.remove_group("seed:s")
    model.seed = None
    train(model, manager, 6, 8)
    model.grow()  # As a rebuild of the structure does it: the same names, other objects.
    model.load_state_dict(weights)
    manager.load(tensors, meta)
    train(model, manager, 4, 6)
    assert equal(bits(model, manager), expected)


def test_what_a_seed_leaves_behind_on_the_way_back_is_dropped():
    model = Net()
    manager = OptimizerManager(None, model)
    train(model, manager, 0, 2)
    _, tensors, meta = saved(model, manager)
    manager.add_parameters("seed:s", model.grow())
    train(model, manager, 2, 3)
    model.seed = None
    manager.load(tensors, meta)
    assert manager.group_names() == ["host"]
    assert len(manager.optimizer.state) == 4


def test_a_state_from_before_the_first_step_clears_the_moments():
    model = Net()
    manager = OptimizerManager(None, model)
    _, tensors, meta = saved(model, manager)
    assert tensors == {}
    train(model, manager, 0, 3)
    manager.load(tensors, meta)
    assert not manager.optimizer.state


@pytest.mark.parametrize("factory", ADAM)
def test_the_state_of_parameters_that_stay_is_the_same_tensors(factory):
    model = Net()
    manager = OptimizerManager(factory, model)
    train(model, manager, 0, 3)
    before = {id(t) for t in manager.export()[0].values()}
    manager.add_parameters("seed:s", model.grow())
    train(model, manager, 3, 4)
    manager.remove_parameters(["seed.weight"])
    manager.remove_parameters(["seed.bias"])
    assert {id(t) for t in manager.export()[0].values()} == before
    assert manager.group_names() == ["host"]
    assert len(manager.optimizer.state) == 4


def test_parameters_that_come_and_go_without_a_gradient_leave_the_run_as_it_was():
    plain, grown = Net(), Net()
    managers = [OptimizerManager(ADAM[1], model) for model in (plain, grown)]
    for step in range(10):
        if step == 3:
            new = nn.Linear(2, 2)
            managers[1].add_parameters("seed:s", {"x." + n: p for n, p in new.named_parameters()})
        if step == 7:
            managers[1].remove_group("seed:s")
        for model, manager in zip((plain, grown), managers, strict=True):
            train(model, manager, step, step + 1)
    assert equal(bits(plain, managers[0]), bits(grown, managers[1]))


def test_parameters_can_join_a_group_that_exists():
    model = Net()
    manager = OptimizerManager(None, model)
    first, second = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    manager.add_parameters("seed:s", {"one": first})
    manager.add_parameters("seed:s", [("two", second)])
    assert manager.parameter_names("seed:s") == ["one", "two"]


def test_a_new_group_has_the_hosts_hyperparameters_as_they_are_now():
    model = Net()
    manager = OptimizerManager(None, model)
    manager.set_hyperparameters({"weight_decay": 0.5})
    manager.add_parameters("seed:s", model.grow())
    assert manager.hyperparameters("seed:s") == manager.hyperparameters()
    manager.set_hyperparameters({"weight_decay": 0.25}, "seed:s")
    assert manager.hyperparameters()["weight_decay"] == 0.5


def test_groups_of_the_jobs_own_are_named_and_named_parameters_work():
    model = Net()

    def factory(params: Any) -> torch.optim.Optimizer:
        groups: list[Any] = [
            {"params": [("a.weight", model.a.weight), ("a.bias", model.a.bias)], "lr": 0.5},
            {"params": list(model.b.named_parameters())},
        ]
        return torch.optim.SGD(groups, lr=0.1)

    manager = OptimizerManager(factory, model)
    assert manager.group_names() == ["host", "host.1"]
    manager.add_parameters("seed:s", model.grow())
    train(model, manager, 0, 2)
    _, tensors, meta = saved(model, manager)
    manager.remove_parameters(["b.bias", "seed.weight"])
    assert manager.param_groups[1]["param_names"] == ["weight"]
    assert manager.parameter_names() == ["a.weight", "a.bias", "b.weight", "seed.bias"]
    manager.add_parameters("host.1", {"b.bias": model.b.bias})
    manager.load(tensors, meta)
    assert manager.parameter_names("seed:s") == ["seed.weight", "seed.bias"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, p: m.add_parameters("g", {"a.weight": p}), "optimized already: a.weight"),
        (lambda m, p: m.add_parameters("g", {}), "no parameter to optimize"),
        (lambda m, p: m.remove_parameters(["nothing"]), "not optimized: nothing"),
        (lambda m, p: m.remove_parameters(m.parameter_names()), "no parameter would be left"),
        (lambda m, p: m.remove_group("seed:x"), "no group 'seed:x'"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_changes_nothing(change, words):
    manager = OptimizerManager(None, Net())
    before = manager.export()[1]
    with pytest.raises(ValueError, match=words):
        change(manager, nn.Parameter(torch.zeros(1)))
    assert manager.export()[1] == before


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS"),
        (lambda p: "adam", "returned a str"),
        (lambda p: torch.optim.SGD([nn.Parameter(torch.zeros(1))]), "isn't the model's"),
        (lambda p: torch.optim.SGD(p, lr=-1), r"test_optimizer.py:\d+: ValueError: Invalid learn"),
    ],
)
def test_a_job_whose_optimizer_cannot_be_used_is_told_in_one_line(factory, words):
    with pytest.raises(JobError, match=words):
        OptimizerManager(factory, Net())


def test_a_model_with_nothing_to_train_is_told():
    with pytest.raises(JobError, match="no parameter that needs a gradient"):
        OptimizerManager(None, nn.ReLU())


def test_a_state_of_something_else_is_refused_and_changes_nothing():
    model = Net()
    manager = OptimizerManager(None, model)
    train(model, manager, 0, 2)
    _, tensors, meta = saved(model, manager)
    expected = {name: tensor.clone() for name, tensor in bits(model, manager).items()}
    other = OptimizerManager(OTHERS[0], Net())
    with pytest.raises(OptimizerStateMismatch, match="of AdamW, the job's optimizer is SGD"):
        other.load(tensors, meta)
    short = {**meta, "groups": [{**meta["groups"][0], "parameters": ["a.weight"]}]}
    foreign = {**meta, "groups": [*meta["groups"], {"name": "seed:s", "parameters": ["s.w"]}]}
    shapes = {**meta, "shapes": {**meta["shapes"], "a.bias": [9]}}
    for wrong, words in [
        (short, "'host' differs from the saved one in: a.bias, b.bias, b.weight"),
        (foreign, "model has no 's.w' of the group 'seed:s'"),
        (shapes, r"a.bias has the shape \[4\], the saved one \[9\]"),
    ]:
        with pytest.raises(OptimizerStateMismatch, match=words):
            manager.load(tensors, wrong)
    with pytest.raises(OptimizerStateMismatch, match="state of 'ghost'"):
        manager.load({**tensors, "ghost/exp_avg": torch.zeros(1)}, meta)
    assert equal(bits(model, manager), expected)
