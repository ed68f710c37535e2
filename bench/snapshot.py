"""States in memory: taking one and going back to it, against memcpy of as many bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from bench.harness import Result, compare, interleave, single
from bench.jobs import Large, Perceptron
from tolaria_bus.settings import Settings, load
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.snapshots import Snapshots
from tolaria_bus.tolaria.recovery.state import TrainingState, restore
from tolaria_bus.tolaria.start import fresh_state

ROUNDS = 9
EVERY: int = Settings.model_fields["snapshot_every_steps"].default
WAIT = 0.02
"""Seconds between two, in which an allocation in the background would get on."""


class Huge(Large):
    """8.5 million parameters: with AdamW's moments a state of 103 MB."""

    name = "bench_huge"
    hidden = (2560, 2304)


def run() -> Result:
    """A perceptron with AdamW's moments, 103 MB in all."""
    state = trained(Huge)
    kept = Snapshots(keep=2, max_bytes=2_000_000_000)
    kept.take(state, 0)
    snapshot = kept.find(state.step, 0)
    assert snapshot is not None
    size = sum(tensor.numel() * tensor.element_size() for tensor in snapshot.tensors.values())
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.ones(size, dtype=torch.uint8)
    taken = iter(range(1, 1_000_000))

    def go_back() -> None:
        newest = kept.newest(state.step)
        assert newest is not None
        restore(state, newest.tensors, newest.meta)

    def look() -> None:
        newest = kept.newest(state.step)
        assert newest is not None
        newest._finite = None
        newest.finite()

    timings = interleave(
        {
            "memcpy": lambda: milliseconds(lambda: target.copy_(source)),
            "take": lambda: milliseconds(lambda: kept.take(state, next(taken))),
            "restore": lambda: milliseconds(go_back),
            "validate": lambda: milliseconds(look),
            "fresh": lambda: milliseconds(source.clone),
        },
        ROUNDS,
        warmup=4,  # Until all its memory is there.
    )
    result = Result("snapshot", f"the whole state, {size / 1e6:.0f} MB; baseline: memcpy of it")
    for what, name, goal in (
        ("take a snapshot", "take", ""),
        ("go back to one", "restore", "<= 2 x, <= 250 ms"),
        ("see that it is finite", "validate", "<= 150 ms"),
        ("for comparison: clone into new memory", "fresh", ""),
    ):
        result.figures.append(compare(what, timings[name], timings["memcpy"], "ms", goal=goal))
    step = statistics.median(milliseconds(lambda: one_step(state)) for _ in range(ROUNDS))
    share = [100 * value / (EVERY * step) for value in timings["take"]]
    what = f"share of training, one in {EVERY} steps of {step:.0f} ms"
    result.figures.append(single(what, share, "%", goal="<= 1 %"))
    return result


def trained(kind: type[Perceptron]) -> TrainingState:
    """A state after one step, so that the optimizer has its moments."""
    settings, _ = load(device="cpu")
    state, _ = fresh_state(view(kind()), settings, torch.device("cpu"))
    one_step(state)
    return state


def one_step(state: TrainingState) -> None:
    """One optimizer step of the large job."""
    state.optimizer.optimizer.zero_grad()
    Large().loss(state.model, state.data.next()).backward()  # type: ignore[no-untyped-call]
    state.optimizer.optimizer.step()
    state.step += 1


def milliseconds(work: Callable[[], object]) -> float:
    """What some work takes."""
    time.sleep(WAIT)
    start = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - start
    del kept
    return seconds * 1e3
