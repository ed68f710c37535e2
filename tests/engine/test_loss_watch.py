import json
import math
from typing import Any

import pytest
import torch

from tolaria_bus.tolaria.engine import LossReading, LossWatch, Verdict

CPU = torch.device("cpu")


def last_of(watch: LossWatch) -> LossReading:
    reading = watch.flush()
    assert reading is not None
    return reading


def push(watch: LossWatch, *losses: float, start: int = 1) -> list[Any]:
    return [watch.push(step, torch.tensor(loss)) for step, loss in enumerate(losses, start)]


def test_a_loss_is_handed_out_one_step_later():
    watch = LossWatch(CPU)
    readings = push(watch, 3.0, 2.0, 1.0)
    assert readings[0] is None
    assert [(r.step, r.loss) for r in readings[1:]] == [(1, 3.0), (2, 2.0)]
    last = last_of(watch)
    assert (last.step, last.loss, last.mean) == (3, 1.0, 2.5)
    assert watch.flush() is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_told_and_not_in_the_mean(loss):
    watch = LossWatch(CPU)
    verdicts = [r.verdict for r in push(watch, 1.0, loss, 1.0, 1.0)[1:]]
    assert verdicts == [Verdict.OK, Verdict.NOT_FINITE, Verdict.OK]
    assert watch.mean == 1.0


def test_a_spike_is_told_above_the_factor_and_only_after_the_warm_up():
    early = LossWatch(CPU, factor=15, warmup=20)
    assert push(early, *[1.0] * 19, 100.0, 0.0)[-1].verdict is Verdict.OK
    late = LossWatch(CPU, factor=15, warmup=20)
    assert push(late, *[1.0] * 20, 15.0, 0.0)[-1].verdict is Verdict.OK
    watch = LossWatch(CPU, factor=15, warmup=20)
    reading = push(watch, *[1.0] * 20, 15.1, 0.0)[-1]
    assert (reading.step, reading.verdict, reading.mean) == (21, Verdict.SPIKE, 1.0)


def test_losses_below_zero_are_no_spikes():
    below = LossWatch(CPU)
    assert push(below, *[-1.0] * 30, 5.0, 0.0)[-1].verdict is Verdict.OK


def test_a_hard_batch_of_a_job_that_has_learnt_is_no_spike_and_an_explosion_is():
    watch = LossWatch(CPU, floor=0.25)
    assert push(watch, *[2.0] * 20, *[1e-3] * 200, 0.4, 0.0)[-1].verdict is Verdict.OK
    push(watch, *[1e-3] * 200)
    assert push(watch, 0.51, 0.0)[-1].verdict is Verdict.SPIKE
    strict = LossWatch(CPU, floor=0.0)
    assert push(strict, *[2.0] * 20, *[1e-3] * 200, 0.1, 0.0)[-1].verdict is Verdict.SPIKE


def test_the_mean_runs_over_the_window():
    watch = LossWatch(CPU, window=4)
    push(watch, 100.0, 1.0, 2.0, 3.0, 4.0)
    assert last_of(watch).mean == (100 + 1 + 2 + 3) / 4
    assert watch.mean == 2.5


@pytest.mark.parametrize("last", [0.1, math.nan])
def test_a_restored_watch_goes_on_as_the_one_before(last):
    watch = LossWatch(CPU)
    push(watch, *[3.0] * 20, *[0.01 * n for n in range(110)], last)
    state = json.loads(json.dumps(watch.state_dict(), allow_nan=False))
    other = LossWatch(CPU)
    other.load_state_dict(state)
    more = [5.0, 0.5, 1.0]
    first, second = (push(w, *more, start=132) for w in (watch, other))
    assert repr(first) == repr(second)
    assert first[0].step == 131
    assert other.mean == watch.mean
