"""The trainer's step, bus and telemetry on, against the plainest loop over the same model.

``python -m bench.overhead bare|ours SIZE STAMPS [URL FOLDER]`` is one of the two programs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

from bench import turns
from bench.harness import Result, compare
from bench.jobs import Large, Medium, Perceptron, Small, Tiny, bare
from bench.server import Place, server
from tolaria_bus.settings import load
from tolaria_bus.worker import WorkerSpec, run_worker

ROUNDS: Final = 5
TURNS: Final = 8
TURN: Final = {Tiny: 0.5, Small: 0.5, Medium: 0.75, Large: 1.0}
"""Seconds: some tens of steps."""
WARMUP: Final = 320
"""Steps before the clock starts: the optimizer's state, and the memory of the first snapshots."""
GOALS: Final[dict[type[Perceptron], str]] = {
    Tiny: "none: shorter than 1 ms",
    Small: "<= 1.10 from 1 ms a step",
    Medium: "<= 1.02 from 10 ms a step",
    Large: "<= 1.02",
}


def run() -> Result:
    """Train perceptrons of four sizes both ways."""
    result = Result("overhead", "seconds a step; trainer with bus, journal, telemetry on")
    for kind in GOALS:
        with server() as place:
            plain, ours = _measure(kind, place)
        what = f"step of {kind.__name__.lower()} perceptron; baseline: bare loop"
        result.figures.append(
            compare(
                what,
                [seconds * 1e3 for seconds in ours],
                [seconds * 1e3 for seconds in plain],
                "ms",
                goal=GOALS[kind],
            )
        )
    return result


def _measure(kind: type[Perceptron], place: Place) -> list[list[float]]:
    with tempfile.TemporaryDirectory(prefix="tolaria-bench-") as folder:
        path = Path(folder)

        def words(how: str, *more: str) -> list[str]:
            return ["-m", __name__, how, kind.__name__, str(path / how), *more]

        with (
            turns.runner(words("bare"), path / "bare") as plain,
            turns.runner(words("ours", place.url, str(path / "run")), path / "ours") as ours,
        ):
            for one in (plain, ours):
                one.get_on(WARMUP)
            return turns.by_turns([plain, ours], rounds=ROUNDS, turns=TURNS, seconds=TURN[kind])


def _main(how: str, size: str, stamps: str, *more: str) -> None:
    kind = {kind.__name__: kind for kind in GOALS}[size]
    kind.stamps = turns.open_stamps(Path(stamps))
    if how == "bare":
        bare(kind())
        return
    url, folder = more
    settings, _ = load(run="bench", run_dir=Path(folder), redis_url=url)
    run_worker(WorkerSpec(job=f"bench.jobs:{size}", settings=settings))


if __name__ == "__main__":
    _main(*sys.argv[1:])
