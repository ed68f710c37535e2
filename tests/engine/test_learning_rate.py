import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from tolaria_bus.tolaria.engine import JobError, LearningRateController, OptimizerManager
from tolaria_bus.tolaria.engine.learning_rate import Correction, LearningRateRefused


def manager(lr: float = 0.1) -> OptimizerManager:
    return OptimizerManager(lambda p: torch.optim.SGD(p, lr=lr), nn.Linear(2, 2))


def grow(optimizer: OptimizerManager, name: str = "seed:a") -> None:
    optimizer.add_parameters(name, {f"{name}.w": nn.Parameter(torch.zeros(3))})


def rate(optimizer: OptimizerManager, group: int = 0) -> float:
    return float(optimizer.param_groups[group]["lr"])


def test_the_schedule_is_applied_to_the_optimizer():
    optimizer = manager()
    controller = LearningRateController(optimizer, "cosine", 100)
    assert controller.apply(0) == ()
    assert rate(optimizer) == 0.1
    controller.apply(50)
    assert rate(optimizer) == pytest.approx(0.05)
    assert controller.rates() == {"host": rate(optimizer)}


def test_a_plain_torch_optimizer_can_be_controlled_too():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.5))
    controller = LearningRateController(optimizer, "constant", 10)
    assert controller.apply(0) == controller.apply(1) == ()
    assert controller.rates() == {"0": 0.5}


def test_each_group_has_its_own_base_and_may_have_its_own_schedule_as_torchs_lambdas_have():
    layers = nn.Linear(2, 2)

    def factory(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": params[:1], "lr": 0.3}, {"params": params[1:]}], lr=0.1)

    asked = {"kind": "cosine", "groups": {"host.1": {"kind": "step", "step_size": 7}}}
    optimizer = OptimizerManager(factory, layers)
    controller = LearningRateController(optimizer, asked, 40)
    plain = factory([nn.Parameter(torch.zeros(1)) for _ in range(2)])
    torchs = torch.optim.lr_scheduler.LambdaLR(
        plain,
        [lambda step: (1 + math.cos(math.pi * step / 40)) / 2, lambda step: 0.1 ** (step // 7)],
    )
    for step in range(40):
        controller.apply(step)
        expected = [group["lr"] for group in plain.param_groups]
        assert [rate(optimizer, 0), rate(optimizer, 1)] == pytest.approx(expected, rel=1e-12)
        plain.step()
        torchs.step()
    grow(optimizer)
    assert controller.apply(40) == ()
    assert controller.rates()["seed:a"] == 0.0  # New groups go by the shared schedule.
    with pytest.raises(LearningRateRefused, match=r"schedule.groups is 'host.2'"):
        LearningRateController(manager(), {"groups": {"host.2": "cosine"}}, 40)


def test_its_figures_say_what_makes_up_each_rate_and_how_often_one_was_put_right():
    optimizer = manager()
    controller = LearningRateController(optimizer, "cosine", 100, new_group_warmup_steps=10)
    grow(optimizer)
    controller.apply(50)
    optimizer.param_groups[0]["lr"] = 9.0
    controller.apply(55)
    figures = {
        (f.name.removeprefix("tolaria.lr_controller."), (f.attributes or {}).get("group", "")): f
        for f in controller.figures(55)
    }
    assert figures["corrections", ""].value == 1
    for group in ("host", "seed:a"):
        base, factor, growth = (
            figures[name, group].value for name in ("base", "schedule_factor", "growth")
        )
        assert figures["learning_rate", group].value == base * factor * growth
    assert figures["growth", "seed:a"].value == pytest.approx(0.55)


def test_a_new_base_is_in_force_at_once_and_the_schedule_goes_on():
    optimizer = manager()
    controller = LearningRateController(optimizer, "cosine", 100)
    controller.apply(50)
    assert controller.set_base(0.4, step=50) == {"host": 0.4}
    assert controller.rates()["host"] == pytest.approx(0.2)
    assert controller.apply(50) == ()
    controller.apply(100)
    assert rate(optimizer) == pytest.approx(0.0)


def test_an_override_warms_up_from_the_present_rate():
    optimizer = manager()
    controller = LearningRateController(optimizer, None, 100)
    controller.set_base(0.3, step=10, warmup_steps=4)
    seen = []
    for step in range(9, 17):
        controller.apply(step)
        seen.append(rate(optimizer))
    assert seen == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.25, 0.3, 0.3, 0.3])
    controller.set_base(1.0, step=12, warmup_steps=2)
    controller.apply(13)
    assert rate(optimizer) == pytest.approx(0.6)


def test_scaling_multiplies_the_base_of_one_group_or_of_all():
    optimizer = manager()
    grow(optimizer)
    controller = LearningRateController(optimizer, None, 100)
    assert controller.scale(0.5, 3) == pytest.approx({"host": 0.05, "seed:a": 0.05})
    assert controller.scale(4, 3, group="seed:a") == pytest.approx({"seed:a": 0.2})
    controller.apply(3)
    assert controller.rates() == pytest.approx({"host": 0.05, "seed:a": 0.2})


def test_new_groups_start_at_a_tenth_of_the_hosts_rate_and_warm_up():
    optimizer = manager()
    controller = LearningRateController(optimizer, None, 100, steps_per_epoch=2)
    controller.apply(0)
    grow(optimizer)
    controller.adopt("seed:a", 5)
    seen = []
    for step in (5, 15, 25, 26):
        assert controller.apply(step) == ()
        seen.append(rate(optimizer, 1))
    assert seen == pytest.approx([0.01, 0.055, 0.1, 0.1])
    assert rate(optimizer) == 0.1


def test_groups_are_followed_though_nobody_told():
    optimizer = manager()
    controller = LearningRateController(optimizer, None, 100, new_group_warmup_steps=10)
    grow(optimizer)
    controller.apply(1)
    assert controller.rates() == pytest.approx({"host": 0.1, "seed:a": 0.01})
    optimizer.remove_group("seed:a")
    grow(optimizer, "seed:b")
    controller.apply(2)
    assert controller.rates() == pytest.approx({"host": 0.1, "seed:b": 0.01})
    optimizer.remove_group("seed:b")
    controller.apply(3)
    assert controller.rates() == {"host": 0.1}


def test_a_group_that_left_can_come_back_as_new():
    optimizer = manager()
    controller = LearningRateController(optimizer, None, 100, new_group_warmup_steps=10)
    grow(optimizer)
    controller.apply(50)
    controller.apply(60)
    controller.release("seed:a")
    controller.adopt("seed:a", 60)
    controller.apply(60)
    assert controller.rates()["seed:a"] == pytest.approx(0.01)
    with pytest.raises(KeyError):
        controller.adopt("seed:none", 60)


@pytest.mark.parametrize("found", [0.2, 0.0, math.nan])
def test_a_rate_changed_behind_its_back_is_put_right_and_reported(found):
    optimizer = manager()
    controller = LearningRateController(optimizer, None, 100)
    controller.apply(0)
    optimizer.param_groups[0]["lr"] = found
    (correction,) = controller.apply(1)
    assert repr(correction) == repr(Correction("host", found, 0.1))
    assert rate(optimizer) == 0.1
    assert controller.apply(2) == ()


def test_a_change_behind_its_back_is_still_told_after_an_override():
    optimizer = manager()
    controller = LearningRateController(optimizer, None, 100)
    optimizer.param_groups[0]["lr"] = 7.0
    controller.set_base(0.2, 3)
    assert controller.apply(3) == (Correction("host", 7.0, 0.1),)
    assert rate(optimizer) == 0.2


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0, -1e-3, 101, "fast", True, None])
def test_a_rate_out_of_range_is_refused_and_changes_nothing(bad):
    controller = LearningRateController(manager(), None, 100)
    before = controller.state_dict()
    with pytest.raises(LearningRateRefused) as error:
        controller.set_base(bad, 1)
    assert (error.value.field, error.value.value is bad) == ("learning_rate", True)
    with pytest.raises(LearningRateRefused):
        controller.scale(bad if bad != 101 else 1001, 1)
    assert controller.state_dict() == before


def test_other_wrong_changes_are_refused_naming_the_field():
    controller = LearningRateController(manager(), None, 100)
    wrong: dict[str, dict[str, Any]] = {
        "group": {"rate": 0.1, "group": "seed:x"},
        "warmup_steps": {"rate": 0.1, "warmup_steps": -1},
        "learning_rate": {"rate": 0.1, "factor": 2.0},
        "factor": {"factor": 2000.0},
    }
    for field, asked in wrong.items():
        with pytest.raises(LearningRateRefused) as error:
            controller.plan(**asked)
        assert error.value.field == field


def test_a_job_whose_own_rate_is_out_of_range_is_refused():
    with pytest.raises(JobError, match=r"group 'host': learning_rate is 200"):
        LearningRateController(manager(lr=200.0), None, 10)


def test_a_plan_changes_nothing_until_it_is_committed():
    controller = LearningRateController(manager(), None, 100)
    change = controller.plan(factor=0.5, warmup_steps=0, group=None)
    controller.apply(4)
    assert controller.rates() == {"host": 0.1}
    assert controller.commit(change, 4) == {"host": 0.05}
    assert controller.rates() == {"host": 0.05}


def test_a_restored_controller_sets_the_same_rates_to_the_bit():
    def steered() -> tuple[OptimizerManager, LearningRateController]:
        optimizer = manager()
        return optimizer, LearningRateController(optimizer, "cosine", 200, steps_per_epoch=3)

    optimizer, controller = steered()
    controller.set_base(0.37, 20, warmup_steps=30)
    grow(optimizer)
    controller.adopt("seed:a", 31)
    controller.apply(40)
    state = json.loads(json.dumps(controller.state_dict()))
    other_optimizer, other = steered()
    with pytest.raises(ValueError, match="seed:a"):
        other.load_state_dict(state)
    grow(other_optimizer)
    other.load_state_dict(state)
    assert other.rates() == controller.rates()
    for step in range(40, 90):
        assert controller.apply(step) == other.apply(step) == ()
        assert controller.rates() == other.rates()
