"""The schedules against torch's own schedulers."""

import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from tolaria_bus.tolaria.engine.learning_rate import LearningRateRefused, Schedule, factor_at

TOTAL = 90
BASE = 0.3


def torchs(make, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    main = make(optimizer)
    scheduler = main
    if warmup:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
        linear = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=warmup)
        scheduler = lr_scheduler.SequentialLR(optimizer, [linear, make(optimizer)], [warmup])
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            # Torch's SequentialLR uses a call of its own that it has deprecated.
            warnings.simplefilter("ignore", UserWarning)
            scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize("kind", ["constant", "cosine", "step"])
def test_every_kind_with_and_without_warm_up_is_torchs(kind, warmup):
    make = {
        "constant": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0),
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(
            o, T_max=TOTAL - warmup, eta_min=BASE * 0.05
        ),
        "step": lambda o: lr_scheduler.StepLR(o, step_size=11, gamma=0.5),
    }[kind]
    schedule = Schedule(kind, warmup_steps=warmup, min_factor=0.05, step_size=11, gamma=0.5)
    ours = [BASE * factor_at(schedule, step, TOTAL) for step in range(TOTAL)]
    assert ours == pytest.approx(torchs(make, warmup), rel=1e-12, abs=1e-12)


def test_cosine_stays_at_its_end():
    schedule = Schedule("cosine", min_factor=0.1)
    assert [factor_at(schedule, step, 10) for step in (10, 11, 1000)] == [0.1] * 3


def test_step_drops_three_times_over_the_run_unless_told_otherwise():
    schedule = Schedule("step", gamma=0.5)
    factors = [factor_at(schedule, step, 90) for step in range(90)]
    assert [factors.index(f) for f in (1.0, 0.5, 0.25)] == [0, 30, 60]


def test_a_schedule_is_parsed_from_a_name_or_a_mapping():
    assert Schedule.parse(None) == Schedule()
    assert Schedule.parse("cosine") == Schedule("cosine")
    assert Schedule.parse({"kind": "step", "gamma": 0.5}) == Schedule("step", gamma=0.5)
    assert Schedule.parse(Schedule("step")) == Schedule("step")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("wavy", "schedule.kind"),
        (4, "schedule"),
        ({"knid": "cosine"}, "schedule"),
        ({"kind": "cosine", "warmup_steps": -1}, "schedule.warmup_steps"),
        ({"kind": "cosine", "warmup_steps": 1.5}, "schedule.warmup_steps"),
        ({"kind": "cosine", "min_factor": float("nan")}, "schedule.min_factor"),
        ({"kind": "step", "step_size": 0}, "schedule.step_size"),
        ({"kind": "step", "gamma": 0}, "schedule.gamma"),
        ({"warmup_start": 2.0}, "schedule.warmup_start"),
    ],
)
def test_a_wrong_schedule_is_refused_naming_the_field(value, field):
    with pytest.raises(LearningRateRefused) as error:
        Schedule.parse(value)
    assert error.value.field == field
    assert error.value.allowed in str(error.value)
