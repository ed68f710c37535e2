"""The clock of phases: everything is counted once, in a bucket that holds it."""

from __future__ import annotations

from itertools import count

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.tolaria.engine.phases import (
    BACKWARD,
    DATA,
    FORWARD,
    PhaseClock,
    Times,
    bucket,
    upper_end,
)


@given(st.lists(st.integers(0, 2**52), min_size=1, max_size=50))
def test_a_value_is_in_the_bucket_whose_ends_are_around_it_and_known_to_a_quarter(values) -> None:
    for value, place in zip(values, bucket(np.array(values)).tolist(), strict=True):
        below = upper_end(place - 1) if place else 0
        assert below <= value < upper_end(place)
        assert upper_end(place) - below <= max(1, below / 4)


def test_buckets_follow_each_other_without_a_gap() -> None:
    ends = [upper_end(place) for place in range(200)]
    assert ends[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert ends == sorted(set(ends))


def test_sums_are_exact_however_many_values_there_are() -> None:
    times = Times()
    for value in range(10_000):
        times.add(value)
    times.fold()
    assert (times.count, times.total_ns, times.longest_ns) == (10_000, 49_995_000, 9_999)
    assert sum(held for _, held in times.buckets()) == 10_000
    assert all(end <= 10_240 for end, _ in times.buckets())


def test_the_phases_of_a_clock_add_up_to_the_whole() -> None:
    ticks = count(1000, 7)
    clock = PhaseClock(lambda: next(ticks))
    heard: list[str] = []
    clock.listeners = (heard.append,)
    assert clock.enter(DATA) == ""
    assert clock.enter(FORWARD) == DATA
    clock.enter(BACKWARD)
    clock.enter(FORWARD)
    clock.stop()
    clock.enter(DATA)
    for times in clock.times.values():
        times.fold()
    assert heard == [DATA, FORWARD, BACKWARD, FORWARD, "", DATA]
    assert {name: each.total_ns for name, each in clock.times.items() if each.count} == {
        DATA: 7,
        FORWARD: 14,
        BACKWARD: 7,
    }
