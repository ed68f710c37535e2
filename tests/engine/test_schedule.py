"""The schedules against torch's own schedulers."""

import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from tolaria_bus.tolaria.engine.learning_rate import LearningRateRefused, Schedule, factor_at

TOTAL = 90
BASE = 0.3


def torchs(make, warmup: int, *, chains: bool = True, steps: int = TOTAL) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    main = make(optimizer)
    scheduler = main
    if warmup and not chains:
        rising = torchs(lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=warmup), 0)
        return rising[:warmup] + torchs(make, 0, steps=TOTAL - warmup)
    if warmup:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
        linear = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=warmup)
        scheduler = lr_scheduler.SequentialLR(optimizer, [linear, make(optimizer)], [warmup])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            # Torch's SequentialLR uses a call of its own that it has deprecated.
            warnings.simplefilter("ignore", UserWarning)
            scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize("kind", ["constant", "cosine", "step", "linear", "one_cycle", "wsd"])
def test_every_kind_with_and_without_warm_up_is_torchs(kind, warmup):
    make = {
        "constant": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0),
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(
            o, T_max=TOTAL - warmup, eta_min=BASE * 0.05
        ),
        "step": lambda o: lr_scheduler.StepLR(o, step_size=11, gamma=0.5),
        "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.05, total_iters=TOTAL - warmup),
        "one_cycle": lambda o: lr_scheduler.OneCycleLR(
            o,
            max_lr=BASE,
            total_steps=TOTAL - warmup,
            pct_start=0.3,
            div_factor=20,
            final_div_factor=1,
            cycle_momentum=False,
        ),
        "wsd": lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.ConstantLR(o, 1.0, total_iters=0),
                lr_scheduler.LinearLR(o, 1.0, 0.05, total_iters=20),
            ],
            [TOTAL - warmup - 20],
        ),
    }[kind]
    schedule = Schedule(
        kind,
        warmup_steps=warmup,
        min_factor=0.05,
        step_size=11,
        gamma=0.5,
        start_factor=0.05,
        decay_steps=20,
    )
    # Torch's OneCycleLR and nested SequentialLR can't follow a LinearLR on one optimizer.
    expected = torchs(make, warmup, chains=kind not in {"one_cycle", "wsd"})
    ours = [BASE * factor_at(schedule, step, TOTAL) for step in range(TOTAL)]
    assert ours == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "linear", "one_cycle", "wsd"])
def test_what_ends_stays_at_its_end(kind):
    schedule = Schedule(kind, min_factor=0.1)
    assert [factor_at(schedule, step, 10) for step in (10, 11, 1000)] == [0.1] * 3


@pytest.mark.parametrize("kind", ["constant", "cosine", "step", "linear", "one_cycle", "wsd"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_runs_of_a_step_or_two_have_rates_too(kind, total):
    for step in range(total + 2):
        assert 0.0 <= factor_at(Schedule(kind, warmup_steps=1), step, total) <= 1.0


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
        ({"kind": "one_cycle", "rise": 0}, "schedule.rise"),
        ({"kind": "wsd", "decay_steps": 0}, "schedule.decay_steps"),
        ({"groups": ["host"]}, "schedule.groups"),
        ({"groups": {"host": "wavy"}}, "schedule.kind"),
        ({"groups": {"a": {"groups": {"b": "cosine"}}}}, "schedule.groups.a"),
    ],
)
def test_a_wrong_schedule_is_refused_naming_the_field(value, field):
    with pytest.raises(LearningRateRefused) as error:
        Schedule.parse(value)
    assert error.value.field == field
    assert error.value.allowed in str(error.value)
