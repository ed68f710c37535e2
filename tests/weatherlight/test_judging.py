"""What counts as hanging, slow or at work: by tables, on a clock of the test's own."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tolaria_bus.safety import Phase, WorkerState
from tolaria_bus.weatherlight.judging import Health, Judge, Look
from tolaria_bus.weatherlight.restarts import Restarts

TICK = 0.1


class Scene:
    """A worker that does what it is told, looked at ten times a second."""

    def __init__(self, *, hang: float = 10.0, start: float = 100.0) -> None:
        self.judge = Judge(hang=timedelta(seconds=hang), start=timedelta(seconds=start))
        self.look = Look(0.0, WorkerState.RUNNING, Phase.TRAINING, 0, True, 0, 0)
        self.health = Health.STARTING

    def is_now(self, **values: object) -> None:
        self.look = replace(self.look, **values)  # type: ignore[arg-type]

    def passes(self, seconds: float, *, step: float | None = None, loop: bool = True) -> Health:
        """Let time pass, with a step every so many seconds, and the event loop going or not."""
        for _ in range(round(seconds / TICK)):
            now = self.look.now + TICK
            values: dict[str, object] = {"now": now}
            if loop:
                values["beat_ns"] = round(now * 1e9)
            if step is not None:
                done = int(now / step + 1e-6)
                values |= {"step": done, "progress_ns": round(done * step * 1e9)}
            self.is_now(**values)
            self.health = self.judge.look(self.look)
        return self.health


def test_a_worker_that_makes_steps_works_and_its_steps_are_timed() -> None:
    scene = Scene()
    assert scene.passes(30, step=0.5) is Health.WORKING
    assert scene.judge.step_seconds == pytest.approx(0.5)
    assert scene.passes(30, step=0.01) is Health.WORKING
    assert scene.judge.step_seconds == pytest.approx(0.01)


def test_no_step_for_a_while_is_slow_and_past_the_limit_hung() -> None:
    scene = Scene()
    scene.passes(5, step=0.1)
    assert scene.passes(2) is Health.SLOW
    assert scene.passes(7) is Health.SLOW
    assert scene.passes(2) is Health.HUNG
    assert scene.judge.cause == "training"


def test_slow_ends_with_a_step() -> None:
    scene = Scene()
    scene.passes(5, step=0.1)
    assert scene.passes(5) is Health.SLOW
    assert scene.passes(1, step=0.1) is Health.WORKING


def test_steps_that_are_long_by_nature_have_a_longer_limit() -> None:
    scene = Scene(hang=10)
    assert scene.passes(60, step=6) is Health.WORKING
    assert scene.passes(50) is not Health.HUNG
    assert scene.passes(20) is Health.HUNG


def test_an_event_loop_that_stands_still_hangs_though_steps_are_made() -> None:
    scene = Scene()
    scene.passes(5, step=0.1)
    assert scene.passes(9, step=0.1, loop=False) is Health.WORKING
    assert scene.passes(2, step=0.1, loop=False) is Health.HUNG
    assert scene.judge.cause == "event loop"


@pytest.mark.parametrize(
    ("state", "health"),
    [
        (WorkerState.PAUSED, Health.PAUSED),
        (WorkerState.HALTED, Health.HALTED),
        (WorkerState.STOPPING, Health.STOPPING),
    ],
)
def test_a_worker_that_is_held_owes_no_steps_but_its_event_loop_must_go(
    state: WorkerState, health: Health
) -> None:
    scene = Scene()
    scene.passes(5, step=0.1)
    scene.is_now(state=state)
    assert scene.passes(1000) is health
    scene.is_now(state=WorkerState.RUNNING)
    assert scene.passes(1, step=0.1) is Health.WORKING
    scene.is_now(state=state)
    assert scene.passes(11, loop=False) is Health.HUNG


def test_loading_and_the_first_step_may_take_longer() -> None:
    scene = Scene(hang=10, start=100)
    scene.is_now(state=WorkerState.STARTING, phase=Phase.LOADING, made_a_step=False)
    assert scene.passes(60, loop=False) is Health.STARTING
    scene.is_now(state=WorkerState.RUNNING, phase=Phase.TRAINING, progress_ns=1)
    assert scene.passes(99) is Health.STARTING
    assert scene.passes(2) is Health.HUNG


def test_a_long_validation_is_not_slow_but_one_that_gets_no_further_hangs() -> None:
    scene = Scene()
    scene.passes(5, step=0.1)
    scene.is_now(phase=Phase.VALIDATING)
    assert scene.passes(9) is Health.WORKING
    scene.is_now(progress_ns=10**12)
    assert scene.passes(9) is Health.WORKING
    assert scene.passes(2) is Health.HUNG


def test_a_checkpoint_may_take_as_long_as_a_start() -> None:
    scene = Scene(hang=10, start=100)
    scene.passes(5, step=0.1)
    scene.is_now(phase=Phase.SAVING)
    assert scene.passes(99) is Health.WORKING
    assert scene.passes(2) is Health.HUNG


def test_a_machine_that_slept_hangs_nobody() -> None:
    scene = Scene()
    scene.passes(5, step=0.1)
    for _ in range(5):
        scene.is_now(now=scene.look.now + 3600)
        assert scene.judge.look(scene.look) is not Health.HUNG
    assert scene.passes(1, step=0.1) is Health.WORKING


@pytest.mark.parametrize("state", [state for state in WorkerState if state.ended])
def test_a_worker_that_has_ended_never_hangs(state: WorkerState) -> None:
    scene = Scene()
    scene.is_now(state=state)
    assert scene.passes(1000, loop=False) is Health.ENDED


def test_going_back_to_an_earlier_step_is_getting_on() -> None:
    scene = Scene()
    scene.passes(60, step=0.1)
    scene.is_now(step=3, progress_ns=10**13)
    assert scene.passes(0.5) is Health.WORKING
    assert scene.judge.step_seconds == pytest.approx(0.1)


def test_restarts_wait_twice_as_long_each_time_and_end() -> None:
    restarts = Restarts(limit=8, first=1.0)
    waits = [restarts.died(40) for _ in range(9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, None]
    assert restarts.total == 8


def test_a_run_that_got_further_is_started_anew_and_one_that_fell_back_is_not() -> None:
    restarts = Restarts(limit=2, first=1.0)
    assert [restarts.died(step) for step in (10, 10, 11, 5, 11)] == [1, 2, 1, 2, None]
    assert Restarts(limit=0, first=1.0).died(7) is None


def test_a_run_that_went_back_while_it_worked_is_measured_from_there() -> None:
    restarts = Restarts(limit=2, first=1.0)
    assert restarts.died(1000, began=0) == 1
    # A rollback to 400 in its second life; then it gets on, and what kills it comes now and then.
    assert restarts.died(450, began=990) == 1
    assert restarts.died(600, began=440) == 1
    assert restarts.died(700, began=590) == 1
    # Where it began at 690 and got no further than before, it is a row as ever.
    assert [restarts.died(700, began=690) for _ in range(2)] == [2, None]
