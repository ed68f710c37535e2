"""Breakers: told by tables and by a model that knows only what the words mean."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.leyline import CircuitBreakerState
from tolaria_bus.safety.breaker import Breaker, BreakerChange, BreakerPolicy

CLOSED = CircuitBreakerState.CIRCUIT_STATE_CLOSED
OPEN = CircuitBreakerState.CIRCUIT_STATE_OPEN
HALF_OPEN = CircuitBreakerState.CIRCUIT_STATE_HALF_OPEN
POLICY = BreakerPolicy(threshold=3, cool_down=10.0, successes=2, longest=35.0)


def failing(times: int, now: float = 0.0) -> Breaker:
    breaker = Breaker("kasmina", POLICY)
    for _ in range(times):
        breaker.failed(now, "no")
    return breaker


def test_it_opens_at_the_threshold_and_not_before():
    assert failing(2).allows(0.0)
    breaker = failing(3)
    assert breaker.state == OPEN
    assert not breaker.allows(9.9)
    assert breaker.reason == "3 failures in a row, the last: no"


def test_a_success_between_failures_starts_the_count_anew():
    breaker = failing(2)
    breaker.succeeded(0.0)
    breaker.failed(0.0, "no")
    breaker.failed(0.0, "no")
    assert breaker.state == CLOSED


def test_after_its_cool_down_trials_close_it():
    breaker = failing(3)
    assert breaker.allows(10.0)
    assert breaker.state == HALF_OPEN
    breaker.succeeded(11.0)
    assert breaker.state == HALF_OPEN
    breaker.succeeded(12.0)
    assert breaker.state == CLOSED
    assert breaker.cool_down == 10.0


def test_each_failed_trial_doubles_the_cool_down_up_to_the_longest():
    breaker, now, waited = failing(3), 0.0, []
    for _ in range(4):
        waited.append(breaker.cool_down)
        now += breaker.cool_down
        assert not breaker.allows(now - 0.1)
        assert breaker.allows(now)
        breaker.failed(now, "no")
    assert waited == [10.0, 20.0, 35.0, 35.0]


def test_what_somebody_opened_stays_open_until_somebody_closes_it():
    breaker = Breaker("tamiyo", POLICY)
    breaker.force(OPEN, 5.0, "maintenance")
    assert not breaker.allows(1e9)
    assert breaker.held
    breaker.force(CLOSED, 6.0, "over")
    assert breaker.allows(6.0)
    assert not breaker.held


def test_a_success_that_comes_late_does_not_close_it():
    breaker = failing(3)
    breaker.succeeded(1.0)
    assert breaker.state == OPEN


def test_each_change_is_told_once():
    told: list[BreakerChange] = []
    breaker = Breaker("bus", POLICY, told.append)
    for _ in range(5):
        breaker.failed(0.0, "down")
    breaker.allows(10.0)
    breaker.allows(10.0)
    breaker.force(CLOSED, 11.0, "asked for")
    breaker.force(CLOSED, 11.0, "asked for")
    assert [(change.before, change.after) for change in told] == [
        (CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0}, {"successes": 0}, {"cool_down": 0.0}, {"longest": 1.0}]
)
def test_a_policy_out_of_range_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="must be"):
        BreakerPolicy(**wrong)


def test_an_unknown_state_is_refused():
    with pytest.raises(ValueError, match="closed, open or half_open"):
        Breaker("bus").force(CircuitBreakerState.CIRCUIT_STATE_UNKNOWN, 0.0, "")


EVENTS = st.lists(st.tuples(st.sampled_from("sfaoc"), st.floats(0.0, 8.0)), max_size=60)


def play(breaker: Breaker, events: list[tuple[str, float]], now: float = 0.0) -> float:
    for what, passed in events:
        now += passed
        if what == "s":
            breaker.succeeded(now)
        elif what == "f":
            breaker.failed(now, "no")
        elif what == "a":
            breaker.allows(now)
        else:
            breaker.force(OPEN if what == "o" else CLOSED, now, "asked for")
    return now


@given(EVENTS)
def test_open_means_refused_and_anything_else_admitted(events: list[tuple[str, float]]):
    breaker = Breaker("timing", POLICY)
    now = play(breaker, events)
    rested = now - breaker.since
    expected = breaker.state != OPEN or (not breaker.held and rested >= breaker.cool_down)
    assert breaker.allows(now) == expected
    assert breaker.failures < POLICY.threshold
    assert breaker.trials < POLICY.successes
    assert breaker.held <= (breaker.state == OPEN)
    assert POLICY.cool_down <= breaker.cool_down <= POLICY.longest


@given(EVENTS, EVENTS)
def test_one_that_was_saved_and_loaded_goes_on_as_if_it_had_not_been(
    before: list[tuple[str, float]], after: list[tuple[str, float]]
):
    one, other = Breaker("timing", POLICY), Breaker("timing", POLICY)
    now = play(one, before)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    play(one, after, now)
    play(other, after, now)
    assert one.state_dict() == other.state_dict()
