"""Checkpoints: what a fence pays, and what the steps after it pay, for ours and for the usual ways.

Each contender saves the same state and trains on; the steps after the save are timed until there
are twenty, then its writing is waited for. ``torch.save`` gets what people write by hand: a copy of
the state, then a thread that saves and syncs. DCP is ``torch.distributed.checkpoint.async_save`` as
it comes.

Processor time of the training process, from the fence until all is durable and with no steps
between, is the figure that a busy machine changes least.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import async_save

from bench.harness import Result, compare, interleave, single
from bench.jobs import Large
from tolaria_bus.settings import load
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.saving import Saving, WriterKind
from tolaria_bus.tolaria.recovery.state import TrainingState, state_bytes
from tolaria_bus.tolaria.start import fresh_state

ROUNDS = 7
STEPS = 20
GOAL = "<= 2 x memcpy"


class Wide(Large):
    """25 million parameters: 300 MB of state with AdamW's moments."""

    name = "bench_wide"
    hidden = (4096, 4096, 1024)


Save = Callable[[], Callable[[], object]]
"""Saves as far as training has to wait, and returns what waits for the rest."""


def run() -> Result:
    """Save and train on, each way in turn."""
    settings, _ = load(device="cpu", deterministic=False)
    job = Wide()
    state, _ = fresh_state(view(job), settings, torch.device("cpu"))
    size = state_bytes(state)

    def step() -> None:
        state.optimizer.optimizer.zero_grad(set_to_none=True)
        job.loss(state.model, state.data.next()).backward()  # type: ignore[no-untyped-call]
        state.optimizer.optimizer.step()
        state.step += 1

    with tempfile.TemporaryDirectory(prefix="tolaria-bench-") as name:
        folder = Path(name)
        ours = {kind: _Ours(state, folder / kind, kind) for kind in ("process", "thread")}
        step()
        size = state_bytes(state)
        found: dict[str, list[tuple[float, float, float]]] = {}
        saves: dict[str, Save] = {
            "none": lambda: lambda: None,
            "process": ours["process"].save,
            "thread": ours["thread"].save,
            "torch.save": lambda: _torch_save(state, folder / "torch.pt"),
            "dcp": lambda: _dcp(state, folder / "dcp"),
        }

        def contender(name: str, save: Save) -> Callable[[], float]:
            def measure() -> float:
                times = _measure(save, step)
                found.setdefault(name, []).append(times)
                return times[1]

            return measure

        source, target = (torch.ones(size, dtype=torch.uint8) for _ in range(2))
        steps = interleave(
            {
                **{name: contender(name, save) for name, save in saves.items()},
                "memcpy": lambda: _milliseconds(lambda: target.copy_(source)),
            },
            ROUNDS,
        )
        saves.pop("none")
        processor = interleave(
            {
                **{name: lambda save=save: _processor(save, state) for name, save in saves.items()},
                "memcpy": lambda: _processor_milliseconds(lambda: target.copy_(source)),
            },
            ROUNDS,
        )
        for saving in ours.values():
            saving.close()
    result = Result("checkpoint", f"{size / 1e6:.0f} MB of state; the fence, and {STEPS} steps")
    for name in saves:
        stalls, _, durable = (list(part) for part in zip(*found[name][-ROUNDS:], strict=True))
        result.figures += [
            compare(
                f"{name}: stall at the fence; baseline: memcpy",
                stalls,
                steps["memcpy"],
                "ms",
                goal=GOAL if name in ours else "",
            ),
            compare(
                f"{name}: fence and {STEPS} steps; baseline: {STEPS} steps",
                steps[name],
                steps["none"],
                "ms",
            ),
            compare(
                f"{name}: processor time of the training process; baseline: memcpy",
                processor[name],
                processor["memcpy"],
                "ms",
            ),
            single(f"{name}: until it is durable", durable, "ms"),
        ]
    return result


class _Ours:
    """Saving as the trainer does it, in a folder of its own."""

    def __init__(self, state: TrainingState, path: Path, writer: WriterKind) -> None:
        self._state = state
        self._folder = RunFolder.open(path, keep=1)
        self._saving = Saving(
            state,
            self._folder,
            job="bench",
            on_saved=lambda _name: None,
            on_failed=_fail,
            writer=writer,
        )

    def save(self) -> Callable[[], object]:
        self._saving.later(0)
        self._saving.release()
        return self._saving.wait

    def close(self) -> None:
        with closing(self._folder):
            self._saving.close(60.0)


def _fail(name: str, why: str) -> None:
    raise RuntimeError(f"{name}: {why}")


def _measure(save: Save, step: Callable[[], None]) -> tuple[float, float, float]:
    """Milliseconds: the stall, stall and steps, until it is durable."""
    step()
    start = time.perf_counter()
    wait = save()
    stall = time.perf_counter() - start
    for _ in range(STEPS):
        step()
    steps = time.perf_counter() - start
    wait()
    return stall * 1e3, steps * 1e3, (time.perf_counter() - start) * 1e3


def _processor(save: Save, state: TrainingState) -> float:
    state.step += 1  # Ours saves no state twice.
    return _processor_milliseconds(lambda: save()())


def _processor_milliseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def _everything(state: TrainingState) -> dict[str, Any]:
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }


def _torch_save(state: TrainingState, path: Path) -> Callable[[], object]:
    private = copy.deepcopy(_everything(state))

    def work() -> None:
        with path.with_suffix(".tmp").open("wb") as file:
            torch.save(private, file)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".tmp").replace(path)

    thread = threading.Thread(target=work)
    thread.start()
    return thread.join


def _dcp(state: TrainingState, path: Path) -> Callable[[], object]:
    shutil.rmtree(path, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        future: Any = async_save(_everything(state), checkpoint_id=path)
    return lambda: future.result()


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3
