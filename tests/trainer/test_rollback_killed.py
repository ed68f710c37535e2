"""SIGKILL at any moment of a rollback: the run ends with the bits of one that was never killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.lives import lived
from tolaria_bus.leyline import CommandStatus
from tolaria_bus.tolaria.recovery.journal import read_records

RATE = """{"commandId": "lr", "commandType": "LEARNING_RATE",
    "learningRate": {"factor": 0.5}}"""
SEED = """{"commandId": "seed", "commandType": "SEED", "targetSeedId": "s1",
    "seedOperation": {"operation": "GERMINATE", "blueprintId": "residual_mlp"}}"""
BACK = '{"commandId": "back", "commandType": "ROLLBACK", "rollbackPayload": %s}'

SCENES: dict[str, tuple[str, dict[str, Any], list[tuple[str, int]]]] = {
    # By itself, once an epoch, across a seed that was germinated in the first epoch.
    "bad batches": (
        "poisoned",
        {"rollback_clean_steps": 2, "snapshot_every_steps": 4, "rollback_limit": 5},
        [(SEED, 3), (RATE, 21)],
    ),
    # To a state in memory, over what was decided since.
    "from memory": (
        "moons",
        {"snapshot_every_steps": 8},
        [(RATE, 35), (SEED, 36), (BACK % "{}", 38)],
    ),
    # To a step that is in no memory: from a checkpoint, and eleven steps, a command among them.
    "from a checkpoint": (
        "moons",
        {"snapshot_every_steps": 8},
        [(SEED, 20), (RATE, 30), (BACK % '{"target_step": 27, "data": "replay"}', 40)],
    ),
}


DEATHS = (
    (
        "chosen",
        "before the journal has it",
        "the journal has it",
        "the state is back",
        "the next step",
        "some steps later",
    ),
    ("half of the state is back", "a step of those made again", "some steps later"),
    ("not all is told", "all is told", "some steps later"),
    ("checkpoints are marked", "the second one"),
)
"""Moments of death, one after the other in one run; each row begins further on."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How each scene ends where nobody is killed, and what was told of it."""
    folder = tmp_path_factory.mktemp("whole")
    ends = {}
    for number, name in enumerate(SCENES):
        end = lived(folder / str(number), *SCENES[name], "")
        ends[name] = end, undone(folder / str(number))
    assert all(end is not None for end, _ in ends.values())
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("moments", DEATHS, ids=lambda moments: moments[0])
@pytest.mark.parametrize("scene", SCENES)
def test_a_rollback_that_is_killed_ends_in_the_same_bits(
    scene: str, moments: tuple[str, ...], whole: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    for moment in (*moments, ""):
        # A moment that doesn't come any more doesn't kill.
        end = lived(folder, *SCENES[scene], moment)
        if end is not None:
            break
    assert end is not None
    expected, told = whole[scene]
    for what in ("weights_sha256", "steps", "timeline", "epochs"):
        assert end[what] == expected[what], what
    assert undone(folder) == told


def undone(folder: Path) -> list[tuple[str, int]]:
    """The commands that the journal says were told ROLLED_BACK, each once."""
    status = CommandStatus.COMMAND_STATUS_ROLLED_BACK
    return sorted(
        (item.result.command_id, item.result.outcome.timeline)
        for item in read_records(folder)
        if item.result.outcome.status == status
    )
