import math

import pytest
import torch
from torch import nn

from tolaria_bus.tolaria.engine import OptimizerManager, OptimizerRefused


def manager(make, **hyperparameters) -> OptimizerManager:
    return OptimizerManager(lambda p: make(p, lr=0.1, **hyperparameters), nn.Linear(2, 2))


def test_accepted_values_are_in_the_group_as_torch_wants_them():
    adam = manager(torch.optim.AdamW)
    assert adam.set_hyperparameters({"weight_decay": 0, "betas": [0.8, 0.9], "eps": 1e-6}) == {
        "weight_decay": 0.0,
        "betas": (0.8, 0.9),
        "eps": 1e-6,
    }
    adam.set_hyperparameters({"beta2": 0.5})
    assert adam.param_groups[0]["betas"] == (0.8, 0.5)
    assert adam.hyperparameters() == {"betas": (0.8, 0.5), "eps": 1e-6, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"weight_decay": math.inf}, "weight_decay"),
        ({"weight_decay": "much"}, "weight_decay"),
        ({"weight_decay": True}, "weight_decay"),
        ({"eps": 0}, "eps"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"betas": 0.9}, "betas"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta1": -0.1}, "beta1"),
        ({"momentum": 0.9}, "hyperparameter"),
        ({"amsgrad": True}, "hyperparameter"),
        ({"fused": True}, "hyperparameter"),
        ({"lr": 0.1}, "lr"),
        ({"weight_decay": 0.5, "eps": -1}, "eps"),
    ],
)
def test_adamw_refuses_naming_field_value_and_what_is_allowed(values, field):
    adam = manager(torch.optim.AdamW)
    before = adam.hyperparameters()
    for change in (adam.check_hyperparameters, adam.set_hyperparameters):
        with pytest.raises(OptimizerRefused) as error:
            change(values)
        assert error.value.field == field
        assert error.value.allowed in str(error.value)
    assert adam.hyperparameters() == before


def test_an_unknown_hyperparameter_is_told_those_there_are():
    with pytest.raises(OptimizerRefused, match=r"betas, eps, weight_decay \(of AdamW\)"):
        manager(torch.optim.AdamW).set_hyperparameters({"wieght_decay": 1})


def test_an_unknown_group_is_told_those_there_are():
    sgd = manager(torch.optim.SGD)
    for change in (sgd.set_hyperparameters, sgd.check_hyperparameters):
        with pytest.raises(OptimizerRefused, match="allowed: host"):
            change({"momentum": 0.5}, "seed:x")
    with pytest.raises(OptimizerRefused, match="allowed: host"):
        sgd.hyperparameters("seed:x")


def test_sgds_momentum_can_come_and_go():
    sgd = manager(torch.optim.SGD)
    parameter = sgd.param_groups[0]["params"][0]
    for momentum in (0.0, 0.9, 0.0, 0.5):
        sgd.set_hyperparameters({"momentum": momentum})
        parameter.grad = torch.ones_like(parameter)
        sgd.optimizer.step()
    sgd.set_hyperparameters({"nesterov": 1.0, "dampening": 0})
    assert sgd.param_groups[0]["nesterov"] is True


@pytest.mark.parametrize(
    ("before", "values", "field"),
    [
        ({}, {"momentum": 1.0}, "momentum"),
        ({}, {"nesterov": True}, "momentum"),
        ({"momentum": 0.9, "nesterov": True}, {"momentum": 0}, "momentum"),
        ({"momentum": 0.9, "nesterov": True}, {"dampening": 0.5}, "dampening"),
        ({"momentum": 0.9}, {"nesterov": 0.3}, "nesterov"),
        ({"momentum": 0.9}, {"dampening": 1.5}, "dampening"),
    ],
)
def test_sgd_refuses_what_torch_would_choke_on(before, values, field):
    with pytest.raises(OptimizerRefused) as error:
        manager(torch.optim.SGD, **before).set_hyperparameters(values)
    assert error.value.field == field


def test_rmsprop_cannot_begin_momentum_late():
    with pytest.raises(OptimizerRefused, match="RMSprop began without momentum"):
        manager(torch.optim.RMSprop).set_hyperparameters({"momentum": 0.5})
    ready = manager(torch.optim.RMSprop, momentum=0.1)
    ready.set_hyperparameters({"momentum": 0.5, "alpha": 0.9})


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adadelta,
        torch.optim.Adafactor,
        torch.optim.Adagrad,
        torch.optim.Adam,
        torch.optim.Adamax,
        torch.optim.ASGD,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Rprop,
    ],
)
def test_every_optimizers_own_values_are_allowed(make):
    optimizer = manager(make)
    values = optimizer.hyperparameters()
    assert optimizer.set_hyperparameters(values) == values
