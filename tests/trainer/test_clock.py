"""What the wall clock says goes into messages, and into nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from tests.trainer.conftest import Run
from tests.trainer.test_recovery import steer

HOUR_NS = 3_600_000_000_000
NOW_NS = 1_800_000_000_000_000_000


def jumping() -> Callable[[], int]:
    """A clock that somebody sets back and forth, by hours, at every other look."""
    looks = itertools.count()
    jumps = itertools.cycle((0, HOUR_NS, -2 * HOUR_NS, 5 * HOUR_NS, -30 * 24 * HOUR_NS))
    return lambda: NOW_NS + next(looks) + next(jumps)


def test_a_clock_that_jumps_back_and_forth_changes_no_bit_and_no_answer(
    make_run: Callable[..., Run],
) -> None:
    steady, unsteady = make_run("steady"), make_run("unsteady")
    unsteady.wall_ns = jumping()
    summaries = []
    for run in (steady, unsteady):
        steer(run)
        summaries.append(run.train())
    assert summaries[0].weights_sha256 == summaries[1].weights_sha256
    assert summaries[0].steps == summaries[1].steps
    assert steady.outcomes() == unsteady.outcomes()
    assert steady.events() == unsteady.events()
