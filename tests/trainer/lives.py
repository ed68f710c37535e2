"""Runs that die: by SIGKILL at a moment of a rollback, or as the power goes at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from tests.forks import PROCESSES
from tests.trainer.conftest import Moons, Run
from tolaria_bus.settings import load
from tolaria_bus.tolaria.control.outcomes import Outcomes
from tolaria_bus.tolaria.control.recovering import Recovering
from tolaria_bus.tolaria.engine.step import TrainStep
from tolaria_bus.tolaria.recovery import rollback
from tolaria_bus.tolaria.recovery.rollback import Rollback


class Poisoned(Moons):
    """One sample is not a number: each epoch has a batch that spoils the weights."""

    name = "poisoned"

    def train_data(self) -> TensorDataset:
        data = super().train_data()
        data.tensors[0][37] = float("nan")
        return data


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, *, before: bool = False, nth: int = 1) -> None:
    """Die before or after the nth call of a function."""
    original = getattr(owner, name)
    calls = 0

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == nth:
            kill()
        found = original(*args, **options)
        if not before and calls == nth:
            kill()
        return found

    setattr(owner, name, dying)


def steps_after(owner: Any, name: str, steps: int) -> None:
    """Die so many steps after a function was first called."""
    original, step = getattr(owner, name), TrainStep.__call__
    left = -1

    def noticed(*args: Any, **options: Any) -> Any:
        nonlocal left
        left = steps if left < 0 else left
        return original(*args, **options)

    def counted(self: TrainStep, *args: Any, **options: Any) -> Any:
        nonlocal left
        if left == 0:
            kill()
        left -= left > 0
        return step(self, *args, **options)

    setattr(owner, name, noticed)
    TrainStep.__call__ = counted  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[], None]] = {
    "chosen": lambda: around(Rollback, "source"),
    "before the journal has it": lambda: around(Rollback, "write_cut", before=True),
    "the journal has it": lambda: around(Rollback, "write_cut"),
    "half of the state is back": lambda: around(rollback, "restore"),
    "a step of those made again": lambda: steps_after(Rollback, "restore", 3),
    "the state is back": lambda: around(Rollback, "apply"),
    "not all is told": lambda: around(Outcomes, "rolled_back"),
    "all is told": lambda: around(Recovering, "tell_undone"),
    "checkpoints are marked": lambda: around(Rollback, "mark_checkpoints", nth=2),
    "the next step": lambda: steps_after(Rollback, "apply", 0),
    "some steps later": lambda: steps_after(Rollback, "apply", 9),
    "the second one": lambda: around(Rollback, "apply", nth=2),
}


def live(
    path: Path, job: str, settings: dict[str, Any], commands: list[tuple[str, int]], moment: str
) -> None:
    """One life: train on from what is in the folder; leave a summary at the end."""
    torch.set_num_threads(1)
    os.chdir(path.parent)
    loaded, _ = load(telemetry_seconds=0.0, device="cpu", **settings)
    run = Run(loaded, path, {"moons": Moons, "poisoned": Poisoned}[job]())
    for text, step in commands:
        run.send(text, at_step=step)
    if moment:
        MOMENTS[moment]()
    summary = run.train()
    told = [
        [item.command_id, item.status]
        for item in run.outbound.outcomes  # ROLLED_BACK among them.
    ]
    path.with_suffix(".json").write_text(json.dumps({**summary.to_json(), "told": told}))


def lived(
    path: Path, job: str, settings: dict[str, Any], commands: list[tuple[str, int]], moment: str
) -> dict[str, Any] | None:
    """Live in a process; its summary, or None if it was killed."""
    process = PROCESSES.Process(target=live, args=(path, job, settings, commands, moment))
    process.start()
    process.join(300)
    assert process.exitcode in {0, -signal.SIGKILL}, process.exitcode
    if process.exitcode:
        return None
    found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return found


class Power:
    """Copies the run's folder at a moment: what a disk holds when the power goes right there."""

    def __init__(self, source: Path, copy: Path) -> None:
        self.source = source
        self.copy = copy

    def fails(self) -> None:
        while not self.copy.exists():
            try:
                shutil.copytree(self.source, self.copy, ignore=shutil.ignore_patterns("*.tmp"))
            except (shutil.Error, FileNotFoundError):
                # Retention took a checkpoint away meanwhile: such a disk has never been.
                shutil.rmtree(self.copy, ignore_errors=True)
