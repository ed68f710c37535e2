"""The trainer's step, bus and telemetry on, against the plainest loop over the same model."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import torch

from bench.harness import Result, compare, interleave
from bench.jobs import Large, Medium, Small, TimedJob, Tiny, bare
from bench.server import Place, server
from tolaria_bus.settings import load
from tolaria_bus.worker import WorkerSpec, run_worker

ROUNDS = 5
GOALS = {
    Tiny: "none: shorter than 1 ms",
    Small: "<= 1.10 from 1 ms a step",
    Medium: "<= 1.02 from 10 ms a step",
    Large: "<= 1.02",
}


def run() -> Result:
    """Train perceptrons of four sizes both ways."""
    result = Result("overhead", "seconds a step; trainer with bus, journal, telemetry on")
    numbers = count()
    with server() as place:
        for kind in GOALS:
            seconds = interleave(
                {
                    "bare": lambda kind=kind: _bare(kind),
                    "ours": lambda kind=kind: _ours(kind, place, f"bench-{next(numbers)}"),
                },
                ROUNDS,
            )
            what = f"step of {kind.__name__.lower()} perceptron; baseline: bare loop"
            milliseconds = {
                name: [value * 1e3 for value in values] for name, values in seconds.items()
            }
            result.figures.append(
                compare(what, milliseconds["ours"], milliseconds["bare"], "ms", goal=GOALS[kind])
            )
    return result


def _bare(kind: type[TimedJob]) -> float:
    """In a thread of its own, as the trainer is: OpenMP has a pool for each thread that computes.

    A second pool beside the main thread's makes a small step last twice as long, whoever makes it.
    """
    torch.use_deterministic_algorithms(False)
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(bare, kind()).result()


def _ours(kind: type[TimedJob], place: Place, run_id: str) -> float:
    with tempfile.TemporaryDirectory(prefix="tolaria-bench-") as folder:
        settings, _ = load(
            run=run_id, run_dir=Path(folder) / run_id, redis_url=place.url, steps=kind().steps
        )
        run_worker(WorkerSpec(job=f"bench.jobs:{kind.__name__}", settings=settings))
    return kind.seconds / kind.timed
