"""Checkpoint copy: what the training thread pays for a checkpoint, against memcpy."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from bench.harness import Result, compare, interleave
from bench.jobs import Large
from tolaria_bus.settings import load
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.state import TrainingState, capture
from tolaria_bus.tolaria.start import fresh_state

ROUNDS = 9


def run() -> Result:
    """Capture the state of the 5 M perceptron with AdamW's moments."""
    state = _trained()
    tensors, _ = capture(state)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.ones(size, dtype=torch.uint8)
    del tensors

    def memcpy() -> float:
        return _milliseconds(lambda: target.copy_(source))

    def fresh() -> float:
        return _milliseconds(source.clone)

    def captured() -> float:
        return _milliseconds(lambda: capture(state))

    timings = interleave({"capture": captured, "memcpy": memcpy, "clone": fresh}, ROUNDS)
    result = Result("capture", f"the whole state once, {size / 1e6:.0f} MB")
    result.figures.append(
        compare(
            "capture; baseline: memcpy into memory that is there",
            timings["capture"],
            timings["memcpy"],
            "ms",
        )
    )
    result.figures.append(
        compare(
            "capture; baseline: memcpy into new memory",
            timings["capture"],
            timings["clone"],
            "ms",
        )
    )
    return result


def _trained() -> TrainingState:
    """After one step, so that the optimizer has its moments."""
    settings, _ = load(device="cpu")
    job = Large()
    state, _ = fresh_state(view(job), settings, torch.device("cpu"))
    job.loss(state.model, state.data.next()).backward()  # type: ignore[no-untyped-call]
    state.optimizer.optimizer.step()
    return state


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - start
    del kept
    return seconds * 1e3
