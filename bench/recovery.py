"""From the start of a process to the first step after a resume, against a plain ``torch.load``.

Both import torch, make the model, its optimizer and data, load 60 MB of state and get as far as
the first call of the loss. Ours has the run's lock, journal and checks of every byte beside that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.harness import Result, compare, interleave
from bench.jobs import Large

ROUNDS = 7

_JOB = """
import os, pathlib, sys
from bench.jobs import Large
path = pathlib.Path(sys.argv[1])

class Job(Large):
    def loss(self, model, batch):
        if model.training:
            os.write(1, b"step\\n")
            os._exit(0)
        return super().loss(model, batch)
"""

_OURS = f"""{_JOB}
from tolaria_bus.settings import load
from tolaria_bus.tolaria.control.mailbox import Mailbox, RecordingOutbound
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.trainer import Trainer
settings, _ = load(device="cpu", steps=60)
job = Large() if len(sys.argv) > 2 else Job()
Trainer(view(job), settings, "r", RunFolder.open(path), Mailbox(), RecordingOutbound()).run()
"""

_PLAIN = f"""{_JOB}
import torch
job = Job()
model = job.model()
images = job.few().tensors
optimizer = job.optimizer(list(model.parameters()))
state = torch.load(path)
model.load_state_dict(state["model"])
optimizer.load_state_dict(state["optimizer"])
model.train()
job.loss(model, [tensor[:job.batch_size] for tensor in images])
"""


def run() -> Result:
    """Train a run to a checkpoint; then start it again and again."""
    with tempfile.TemporaryDirectory(prefix="tolaria-bench-") as name:
        run_folder, plain = Path(name) / "run", Path(name) / "plain.pt"
        _first(_OURS.replace("steps=60", "steps=20"), run_folder, "to its end")
        _plain_state(plain)
        seconds = interleave(
            {
                "ours": lambda: _first(_OURS, run_folder),
                "plain": lambda: _first(_PLAIN, plain),
            },
            ROUNDS,
        )
    result = Result("recovery", "seconds from the start of the process to the first resumed step")
    result.figures.append(
        compare(
            "resume from a checkpoint; baseline: torch.load by hand",
            seconds["ours"],
            seconds["plain"],
            "s",
        )
    )
    return result


def _first(code: str, path: Path, *rest: str) -> float:
    """Seconds until the program says ``step``, or ends."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path), *rest], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"the process to be timed ended with {process.returncode}")
    return seconds


def _plain_state(path: Path) -> None:
    job = Large()
    model = job.model()
    optimizer = job.optimizer(list(model.parameters()))
    job.loss(model, [tensor[:8] for tensor in job.few().tensors]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
