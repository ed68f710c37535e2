"""The shipped policy, by tables: what it says to which state, and why."""

from __future__ import annotations

import math

import pytest

from tests.tamiyo.packets import STEPS, history, packet, seed
from tolaria_bus.leyline import AdaptationCommand, CommandType, SystemStatePacket
from tolaria_bus.leyline import SeedOperation as Operation
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.tamiyo import Heuristic
from tolaria_bus.tamiyo.history import History

FLAT = [1.0] * 5
FALLING = [1.0, 0.9, 0.8, 0.7]


def said(command: AdaptationCommand | None) -> str:
    """``SEED CULL s``, ``LEARNING_RATE 0.5``, or nothing."""
    if command is None:
        return ""
    words = [short_name(CommandType, command.command_type)]
    if command.HasField("seed_operation"):
        words += [
            short_name(Operation, command.seed_operation.operation),
            command.target_seed_id,
        ]
    if command.HasField("learning_rate"):
        words.append(f"{command.learning_rate.factor:g}")
    return " ".join(words)


@pytest.mark.parametrize(
    ("now", "past", "expected"),
    [
        # What gets better, or is young, is left alone.
        (packet(1, 1.0), [], ""),
        (packet(5, 0.6), FALLING, ""),
        (packet(4, 1.0), [1.0, 1.0, 1.0], ""),
        # A gain counts only where it is one.
        (packet(6, 0.998), FLAT, "SEED GERMINATE e6.t1"),
        (packet(6, 0.9), FLAT, ""),
        # A plateau: a seed where one can grow, else a lower rate.
        (packet(6, 1.0), FLAT, "SEED GERMINATE e6.t1"),
        (packet(6, 1.0, timeline=3), FLAT, "SEED GERMINATE e6.t3"),
        (packet(6, 1.0, kind=""), FLAT, "LEARNING_RATE 0.5"),
        (packet(6, 1.0, kind="graph"), FLAT, "LEARNING_RATE 0.5"),
        (packet(6, 1.0, mode="conservative"), FLAT, "LEARNING_RATE 0.5"),
        (packet(6, 1.0, kind="", learning_rate=2.0), FLAT, ""),
        (packet(6, 1.0, seed=1.0), FLAT, ""),
        (packet(6, 1.0, seed("FOSSILIZED", parameters=700)), FLAT, "LEARNING_RATE 0.5"),
        # A loss that rises, twice in a row: a lower rate; but not again at once.
        (packet(5, 1.3), [1.0, 0.9, 0.8, 1.2], "LEARNING_RATE 0.5"),
        (packet(5, 1.3), [1.0, 0.9, 0.8, 0.8], ""),
        (packet(5, 1.3, learning_rate=1.0), [1.0, 0.9, 0.8, 1.2], ""),
        (packet(5, 1.3, seed("SHADOWING")), [1.0, 0.9, 0.8, 1.2], "SEED EVALUATE s"),
        # What can't go on.
        (packet(5, math.inf), FALLING, "PAUSE"),
        (packet(5, math.nan), [math.nan] * 4, ""),
        (packet(5, math.nan), FALLING, "PAUSE"),
        (packet(7, 9.0, learning_rate=0.0), [1.0, 9.0, 9.0, 9.0, 9.0, 9.0], "PAUSE"),
        (packet(5, 0.6, free_memory=0.1), FALLING, "EMERGENCY"),
        (packet(5, 0.6, free_memory=0.1, emergency=1.0), FALLING, ""),
    ],
)
def test_the_whole(now: SystemStatePacket, past: list[float], expected: str) -> None:
    assert said(Heuristic()(now, history(past))) == expected


S = "GERMINATED", "TRAINING", "BLENDING", "SHADOWING", "PROBATIONARY"
STAGES: dict[int, str] = {1: "GERMINATED", 2: "TRAINING", 3: "TRAINING", 4: "BLENDING"}


@pytest.mark.parametrize(
    ("found", "stages", "loss", "expected"),
    [
        (seed("GERMINATED"), {}, 1.0, "SEED START_TRAINING s"),
        (seed("TRAINING"), {5: "TRAINING"}, 1.0, ""),
        (seed("TRAINING"), {4: "TRAINING", 5: "TRAINING"}, 1.0, "SEED START_GRAFTING s"),
        (seed("TRAINING", risk=0.1), {5: "TRAINING"}, 1.0, "SEED CULL s"),
        # A gate that refuses for too long.
        (seed("TRAINING"), dict.fromkeys(range(1, 6), "TRAINING"), 1.0, "SEED START_GRAFTING s"),
        (seed("TRAINING"), dict.fromkeys(range(1, 8), "TRAINING"), 1.0, "SEED CULL s"),
        (seed("BLENDING", alpha=0.4), {5: "BLENDING"}, 1.0, ""),
        (seed("BLENDING", alpha=1.0), {5: "BLENDING"}, 1.0, "SEED STABILIZE s"),
        (seed("BLENDING", alpha=0.4), {4: "TRAINING", 5: "BLENDING"}, 1.2, "SEED CULL s"),
        (seed("SHADOWING"), {}, 1.0, "SEED EVALUATE s"),
        (seed("PROBATIONARY"), {4: "TRAINING", 5: "SHADOWING"}, 0.9, ""),
        # A trial that ended well, and one that didn't.
        (
            seed("PROBATIONARY"),
            {3: "TRAINING", 4: "PROBATIONARY", 5: "PROBATIONARY"},
            0.9,
            "SEED FOSSILIZE s",
        ),
        (
            seed("PROBATIONARY"),
            {3: "TRAINING", 4: "PROBATIONARY", 5: "PROBATIONARY"},
            1.0,
            "SEED CULL s",
        ),
        # Decided: nothing is left to do.
        (seed("CULLED"), {}, 0.9, ""),
        (seed("EMBARGOED"), {}, 0.9, ""),
        (seed("FOSSILIZED"), {}, 0.9, ""),
    ],
)
def test_the_life_of_a_seed(found, stages: dict[int, str], loss: float, expected: str) -> None:
    past = history([1.0] * max(5, *stages, 0), stages)
    now = packet(len(past.past) + 1, loss, found, seed=1.0)
    assert said(Heuristic()(now, past)) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (seed("GERMINATED"), ""),
        (seed("BLENDING", alpha=1.0), "SEED STABILIZE s"),
        (seed("SHADOWING"), "SEED EVALUATE s"),
        (seed("PROBATIONARY"), ""),
        (seed("TRAINING", risk=0.5), "SEED CULL s"),
    ],
)
def test_in_conservative_mode_nothing_grows_and_what_failed_is_taken_away(
    found, expected: str
) -> None:
    now = packet(4, 0.7, found, mode="conservative", seed=1.0)
    assert said(Heuristic()(now, history(FALLING[:3]))) == expected


def test_a_graft_is_blended_in_over_an_epoch_and_a_cull_closes_its_slot_for_one() -> None:
    learnt = history([1.0] * 5, {4: "TRAINING", 5: "TRAINING"})
    graft = Heuristic()(packet(6, 1.0, seed("TRAINING")), learnt)
    cull = Heuristic()(packet(6, 1.0, seed("TRAINING", risk=1.0)), learnt)
    assert graft is not None
    assert cull is not None
    assert dict(graft.seed_operation.values) == {"blend_steps": STEPS}
    assert dict(cull.seed_operation.values) == {"embargo_steps": STEPS}


@pytest.mark.parametrize(
    ("kind", "blueprint"),
    [("conv2d", "residual_conv"), ("linear", "residual_mlp"), ("sequence", "residual_mlp")],
)
def test_what_grows_fits_its_slot(kind: str, blueprint: str) -> None:
    command = Heuristic()(packet(6, 1.0, kind=kind), history(FLAT))
    assert command is not None
    assert command.seed_operation.blueprint_id == blueprint
    assert command.seed_operation.slot == "slot"


def test_every_answer_says_why() -> None:
    for now, past in (
        (packet(6, 1.0), FLAT),
        (packet(6, 1.0, kind=""), FLAT),
        (packet(5, math.inf), FALLING),
        (packet(5, 0.6, seed("SHADOWING")), FALLING),
    ):
        command = Heuristic()(now, history(past))
        assert command is not None
        assert command.annotations["reason"]


def test_it_changes_nothing_that_it_is_given_and_says_the_same_again() -> None:
    now, past = packet(6, 1.0), history(FLAT)
    before = now.SerializeToString(deterministic=True), past
    first, second = Heuristic()(now, past), Heuristic()(now, past)
    assert first == second
    assert (now.SerializeToString(deterministic=True), past) == before


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 0},
        {"lr_factor": 1.0},
        {"lr_factor": math.nan},
        {"diverged": 1.0},
        {"gain": -0.1},
        {"harm": math.inf},
        {"stage_patience": 2},
    ],
)
def test_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Heuristic(**options)


def test_a_rollback_is_forgotten_with_what_it_cut_off() -> None:
    past = history([1.0, 0.5, 0.4, 0.3])
    again = past.then(packet(2, 0.9, timeline=2))
    assert [(seen.timeline, seen.epoch) for seen in again.past] == [(1, 1), (2, 2)]
    assert again.best() == pytest.approx(0.9)


def test_a_packet_that_comes_twice_is_remembered_once() -> None:
    past = history([1.0, 0.5])
    assert past.then(packet(2, 0.5)) == past


def test_history_is_short() -> None:
    assert len(history([1.0] * 200).past) == 64
    assert History().best() == math.inf
