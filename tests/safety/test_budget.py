import math

from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.safety.budget import Budget, Durations

BUDGET = Budget({"assembly": 3.5, "adaptation": 1.5}, total_ms=4.0)


def test_what_keeps_to_its_limits_breaches_nothing():
    assert BUDGET.breaches({"assembly": 2.5, "adaptation": 1.5, "validation": 900.0}) == []


def test_a_phase_over_its_limit_is_named_with_what_it_may_take():
    (breach,) = BUDGET.breaches({"assembly": 1.0, "adaptation": 2.0})
    assert str(breach) == "adaptation 2 ms (limit 1.5)"


def test_phases_that_keep_their_limits_may_be_too_long_together():
    (breach,) = BUDGET.breaches({"assembly": 3.5, "adaptation": 1.0})
    assert (breach.phase, breach.took_ms, breach.limit_ms) == ("total", 4.5, 4.0)


def test_a_slower_machine_is_given_more_of_everything():
    more = BUDGET.scaled(8.0)
    assert (more.limits_ms, more.total_ms) == ({"assembly": 7.0, "adaptation": 3.0}, 8.0)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=50), st.floats(0.0, 100.0))
def test_a_percentile_is_one_of_them_that_so_many_do_not_exceed(took: list[float], percent: float):
    durations = Durations(window=50)
    for one in took:
        durations.add(one)
    found = durations.percentile(percent)
    assert found in took
    assert sum(one <= found for one in took) >= percent / 100 * len(took) - 1e-9
    smaller = [one for one in took if one < found]
    assert len(smaller) < max(math.ceil(percent / 100 * len(took) + 1e-9), 1)


def test_only_the_last_ones_count():
    durations = Durations(window=3)
    assert durations.percentile(50) == 0.0
    for one in (100.0, 1.0, 2.0, 3.0):
        durations.add(one)
    assert durations.percentile(99) == 3.0
