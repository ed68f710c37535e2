"""Real workers as real processes, and the command line beside them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.worker import nursery
from tests.worker.nursery import Forked

_numbers = itertools.count()
JOB = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tolaria_bus.kasmina import SeedSlot


class Tiny:
    batch_size, epochs, name = 16, 4, "tiny"

    def model(self):
        return nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), SeedSlot(8, kind="linear"), nn.Dropout(0.2), nn.Linear(8, 2)
        )

    def data(self, samples):
        x = torch.randn(samples, 4)
        return TensorDataset(x, (x.sum(1) > 0).long())

    def train_data(self):
        return self.data(16 * 50)

    def validation_data(self):
        return self.data(64)

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def accuracy(self, model, batch):
        return (model(batch[0]).argmax(1) == batch[1]).float().mean()
"""


@dataclass
class Terminal:
    """A folder with its own state and environment, as a user's terminal has.

    Attributes:
        folder: It.
        environment: Beside what the tests' own has.
        fresh: Each command is a new interpreter; otherwise it is forked, see the nursery.
        forked_workers: Those that a supervisor among the commands starts are forked too.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    fresh: bool = False
    forked_workers: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "tiny.py").write_text(JOB)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "TOLARIA" not in name}
        return {
            **kept,
            "XDG_STATE_HOME": str(self.folder / "state"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            **self.environment,
        }

    def run(self, *words: str, check: int | None = 0, timeout: float = 300) -> str:
        """Run ``tolaria-bus WORDS`` to its end and return what it printed."""
        with self.start(*words) as process:
            return process.ends(check, timeout)

    @contextmanager
    def start(self, *words: str) -> Iterator[Process]:
        """Start ``tolaria-bus WORDS``; killed at the end if it is still there."""
        log = self.folder / f"{words[0]}-{next(_numbers)}.log"
        started: subprocess.Popen[bytes] | Forked
        if self.fresh:
            with log.open("wb") as output:
                started = subprocess.Popen(
                    [sys.executable, "-m", "tolaria_bus", *words],
                    cwd=self.folder,
                    env=self._environment(),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        else:
            started = nursery.start(
                words,
                cwd=self.folder,
                environment=self._environment(),
                log=log,
                supervises=self.forked_workers,
            )
        process = Process(started, log)
        try:
            yield process
        finally:
            if started.poll() is None:
                started.kill()
            started.wait(120)


@dataclass
class Process:
    """A started command."""

    popen: subprocess.Popen[bytes] | Forked
    log: Path

    def ends(self, code: int | None = 0, timeout: float = 300) -> str:
        """Wait for its end and return its output."""
        returned = self.popen.wait(timeout)
        text = self.log.read_text(errors="replace")
        assert code is None or returned == code, (returned, text)
        return text

    def says(self, text: str, timeout: float = 180) -> None:
        """Wait until its output has ``text``, or fail with what it has."""
        end = time.monotonic() + timeout
        while text not in self.log.read_text(errors="replace"):
            assert self.popen.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < end, self.log.read_text(errors="replace")
            # A file can't be awaited; this is a poll, not a wait for something to have happened.
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.popen.send_signal(number)


def summary(path: Path) -> dict[str, Any]:
    """Read what ``--summary`` wrote."""
    found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found
