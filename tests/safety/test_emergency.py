"""What raises an emergency to which level, and what lowers it: by tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.leyline import EmergencyLevel, EmergencyState
from tolaria_bus.safety.emergency import (
    CAUSES,
    CONSERVATIVE,
    ELEVATED,
    HALT,
    LIMITS,
    NEVER,
    NONE,
    NOTICE,
    eased,
    easing_step,
    level_name,
    raised,
    released,
    resumed,
    worsened,
)

CLEAN = 100


def after(*causes: str, step: int = 10) -> EmergencyState:
    state = EmergencyState()
    for cause in causes:
        state = worsened(state, cause, step=step, reason=f"because of {cause}")
    return state


def at(level: EmergencyLevel.ValueType, step: int = 10) -> EmergencyState:
    return raised(EmergencyState(), level, step=step, cause="command", reason="drill", by="ann")


@pytest.mark.parametrize(
    ("causes", "level"),
    [
        ([], "none"),
        (["fallback"], "notice"),
        (["fallback"] * 50, "notice"),
        (["seed_failed"] * 2, "notice"),
        (["seed_failed"] * 3, "elevated"),
        (["seed_failed"] * 50, "elevated"),
        (["checkpoint_failed"] * 3, "elevated"),
        (["breaker_opened"] * 3, "elevated"),
        (["boundary_slow"], "elevated"),
        (["boundary_slow"] * 9, "elevated"),
        (["journal_unwritable"], "elevated"),
        (["loss_spike"], "elevated"),
        (["loss_spike"] * 2, "conservative"),
        (["loss_spike"] * 50, "conservative"),
        (["loss_not_finite"] * 2, "conservative"),
        (["accuracy_collapsed"] * 2, "conservative"),
        (["rollback_failed"], "halt"),
        # Another cause of the same weight: one level more.
        (["fallback", "seed_failed"], "elevated"),
        (["fallback", "seed_failed", "seed_failed"], "elevated"),
        (["fallback", "seed_failed", "checkpoint_failed"], "elevated"),
        (["loss_spike", "boundary_slow"], "conservative"),
        (["loss_spike", "boundary_slow", "boundary_slow", "journal_unwritable"], "conservative"),
        # One of less weight adds nothing; one of more weight is what counts.
        (["loss_spike", "fallback"], "elevated"),
        (["fallback", "loss_spike"], "elevated"),
        # Never to HALT by numbers.
        (sorted(CAUSES.keys() - {"rollback_failed"}) * 9, "conservative"),
    ],
)
def test_causes_lead_to_levels(causes: list[str], level: str) -> None:
    assert level_name(after(*causes).level) == level


def test_a_rise_says_what_it_was_and_since_when() -> None:
    first = worsened(EmergencyState(), "loss_spike", step=7, reason="one")
    second = worsened(first, "loss_spike", step=20, reason="two")
    third = worsened(second, "loss_spike", step=30, reason="three")
    assert (first.level, first.since_step, first.reason) == (ELEVATED, 7, "one")
    assert (second.level, second.since_step, second.reason) == (CONSERVATIVE, 20, "two")
    assert (third.level, third.since_step, third.reason) == (CONSERVATIVE, 20, "two")
    assert (third.cause, third.by, third.last_step, dict(third.counts)) == (
        "loss_spike", "tolaria", 30, {"loss_spike": 3},
    )  # fmt: skip


def test_an_unknown_cause_is_a_fault() -> None:
    with pytest.raises(KeyError):
        worsened(EmergencyState(), "boredom", step=1, reason="")


@pytest.mark.parametrize(
    ("before", "step", "level"),
    [
        (NOTICE, 109, None),
        (NOTICE, 110, "none"),
        (ELEVATED, 110, "notice"),
        (CONSERVATIVE, 500, "elevated"),
        (HALT, 10**9, None),
        (NONE, 10**9, None),
    ],
)
def test_a_clean_stretch_lowers_it_by_one_level(before, step: int, level: str | None) -> None:
    found = eased(at(before), step=step, clean_steps=CLEAN)
    assert (found and level_name(found.level)) == level


def test_each_level_wants_a_stretch_of_its_own_and_none_forgets() -> None:
    state = after("loss_spike", "loss_spike", step=10)
    steps = []
    while state.level:
        steps.append(easing_step(state, CLEAN))
        found = eased(state, step=steps[-1], clean_steps=CLEAN)
        assert found is not None
        state = found
    assert steps == [110, 210, 310]
    assert state == EmergencyState()
    assert easing_step(state, CLEAN) == NEVER


def test_a_cause_on_the_way_down_counts_with_those_before_and_begins_the_stretch_anew() -> None:
    state = eased(after("loss_spike", "loss_spike"), step=110, clean_steps=CLEAN)
    assert state is not None
    again = worsened(state, "loss_spike", step=150, reason="once more")
    assert again.level == CONSERVATIVE
    assert easing_step(again, CLEAN) == 250


def test_after_a_rollback_the_stretch_begins_where_it_failed() -> None:
    state = worsened(after("loss_spike", step=500), "fallback", step=480, reason="")
    assert easing_step(state, CLEAN) == 600


@pytest.mark.parametrize(
    ("before", "conservative", "level"),
    [
        (HALT, True, "conservative"),
        (HALT, False, "elevated"),
        (CONSERVATIVE, True, "conservative"),
        (NOTICE, False, "notice"),
        (NONE, False, "none"),
    ],
)
def test_only_a_resume_ends_a_halt(before, conservative: bool, level: str) -> None:
    assert level_name(resumed(at(before), step=10, conservative=conservative).level) == level


@pytest.mark.parametrize(("before", "level"), [(HALT, "halt"), (CONSERVATIVE, "elevated")])
def test_a_mode_that_somebody_sets_is_theirs(before, level: str) -> None:
    state = at(before)
    state.conservative = True
    found = released(state, step=20)
    assert (level_name(found.level), found.conservative) == (level, False)


def test_a_word_of_less_than_the_present_level_changes_nothing_but_the_stretch() -> None:
    state = raised(at(CONSERVATIVE), NOTICE, step=30, cause="signal", reason="", by="run/b")
    assert (state.level, state.by, state.since_step, state.last_step) == (
        CONSERVATIVE,
        "ann",
        10,
        30,
    )


def test_each_level_has_its_limit() -> None:
    assert {level_name(level): limit.total_seconds() for level, limit in LIMITS.items()} == {
        "halt": 0.1, "conservative": 0.5, "elevated": 2.0, "notice": 5.0,
    }  # fmt: skip


events = st.one_of(
    st.tuples(st.just("cause"), st.sampled_from(sorted(CAUSES))),
    st.tuples(st.just("word"), st.sampled_from([NOTICE, ELEVATED, CONSERVATIVE, HALT])),
    st.tuples(st.just("steps"), st.integers(0, 3 * CLEAN)),
    st.tuples(st.just("resume"), st.booleans()),
)


@given(st.lists(events, max_size=40))
def test_whatever_happens_a_halt_ends_by_a_resume_alone_and_levels_fall_one_at_a_time(happens):
    state, step = EmergencyState(), 0
    for kind, what in happens:
        before = state.SerializeToString(deterministic=True)
        level = state.level
        if kind == "cause":
            found = worsened(state, what, step=step, reason="r")
            assert found.level >= level
        elif kind == "word":
            found = raised(state, what, step=step, cause="command", reason="r", by="b")
            assert found.level == max(level, what)
        elif kind == "resume":
            found = resumed(state, step=step, conservative=what)
            assert found.level < HALT
            assert level == HALT or found.level == level
        else:
            step += what
            found = eased(state, step=step, clean_steps=CLEAN) or state
            assert found.level in (level, level - 1)
            assert level != HALT or found.level == HALT
        # Pure: what it was given is as it was.
        assert state.SerializeToString(deterministic=True) == before
        state = found
        assert state.level in EmergencyLevel.values()
