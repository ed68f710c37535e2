"""Interleaved rounds, medians, and where results go."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path("bench-results")


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
        what: What was measured, in words.
        value: Median over the rounds.
        unit: Of value, baseline, low and high.
        baseline: Median of what it is compared with; ``None`` if there is nothing.
        ratio: Median over the rounds of value / baseline, each pair measured back to back.
        low: Smallest value of a round.
        high: Largest value of a round.
        rounds: How many.
        goal: What the project aims at, in words; empty if nothing.
    """

    what: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 1
    goal: str = ""


@dataclass
class Result:
    """What one subject came to."""

    subject: str
    about: str
    figures: list[Figure] = field(default_factory=list)
    seconds: float = 0.0


def interleave(
    contenders: Mapping[str, Callable[[], float]], rounds: int, *, warmup: int = 1
) -> dict[str, list[float]]:
    """Measure the contenders in turn, round after round, so that the machine's moods hit all.

    The order turns around each round: whoever goes first has no lasting advantage. The garbage
    collector runs between measurements, not in them more than it does in life.

    Args:
        contenders: Name to a function that does the work once and returns its figure.
        rounds: Measured rounds.
        warmup: Rounds before them that don't count.

    Returns:
        Name to the figures, one a round, in order of rounds.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warmup + rounds):
        order = list(contenders)[:: 1 if number % 2 else -1]
        for name in order:
            gc.collect()
            value = contenders[name]()
            if number >= warmup:
                found[name].append(value)
    return found


def compare(
    what: str,
    values: Sequence[float],
    baseline: Sequence[float],
    unit: str,
    *,
    goal: str = "",
) -> Figure:
    """A figure with its ratio to a baseline, pair by pair."""
    ratios = [value / base for value, base in zip(values, baseline, strict=True)]
    return Figure(
        what=what,
        value=statistics.median(values),
        unit=unit,
        baseline=statistics.median(baseline),
        ratio=statistics.median(ratios),
        low=min(values),
        high=max(values),
        rounds=len(values),
        goal=goal,
    )


def single(what: str, values: Sequence[float], unit: str, *, goal: str = "") -> Figure:
    """A figure with nothing to compare with."""
    return Figure(
        what=what,
        value=statistics.median(values),
        unit=unit,
        low=min(values),
        high=max(values),
        rounds=len(values),
        goal=goal,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of the values don't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def microseconds(work: Callable[[], object], times: int) -> float:
    """Mean time of one call, in microseconds."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times * 1e6


def hardware() -> dict[str, Any]:
    """What this was measured on; the load says whether it was alone."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def hardware_line(facts: Mapping[str, Any]) -> str:
    """One line for people."""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, load "
        f"{facts['load_before']} before, Python {facts['python']}, torch {facts['torch']} "
        f"({facts['torch_threads']} threads)"
    )


def write(result: Result, facts: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``folder/SUBJECT.json`` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.subject}.json"
    path.write_text(json.dumps({"hardware": facts, **asdict(result)}, indent=2) + "\n")
    return path


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
