"""Three small jobs without an end. A file that is put beside them makes one raise, or hang."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

from tolaria_bus.jobs.bytes_lm import BytesLM
from tolaria_bus.jobs.digits import Digits
from tolaria_bus.kasmina import SeedSlot

ENDLESS = 1_000_000
REST = 0.008
"""Seconds of each step in which nothing is done: the machine may be small."""
RAISE = "raise"
HANG = "hang"


class Tripped(RuntimeError):
    """What a job raises that was told to."""


def trip_of(run: str) -> Path:
    """The file, in the folder that workers are started in, that tells a run's job what to do."""
    return Path(f"trip-{run}")


def step(run: str) -> None:
    """Rest; and raise or hang, once, if the run's file says so."""
    time.sleep(REST)
    trip = trip_of(run)
    if not trip.exists():
        return
    what = trip.read_text()
    trip.unlink()
    if what == HANG:
        threading.Event().wait()
    raise Tripped("it was told to")


class SteadyDigits(Digits):
    """``digits``, small."""

    def __init__(self, width: int = 4, batch_size: int = 64) -> None:
        super().__init__(width=width, batch_size=batch_size, epochs=ENDLESS)

    def loss(self, model: nn.Module, batch: list[Tensor], reduction: str = "mean") -> Tensor:
        """As ever."""
        step("digits")
        return super().loss(model, batch, reduction)


class SteadyBytes(BytesLM):
    """``bytes_lm`` on the first pages of its text."""

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__(
            width=32, depth=1, context=32, batch_size=batch_size, dropout=0.1, epochs=ENDLESS
        )

    def train_data(self) -> TensorDataset:
        """The first windows of the text."""
        return TensorDataset(super().train_data().tensors[0][: 40 * self.batch_size])

    def validation_data(self) -> TensorDataset:
        """The first of those held out."""
        return TensorDataset(super().validation_data().tensors[0][: 2 * self.batch_size])

    def loss(self, model: nn.Module, batch: list[Tensor], reduction: str = "mean") -> Tensor:
        """As ever."""
        step("bytes")
        return super().loss(model, batch, reduction)


class Moons:
    """Two half circles, told apart by a small network."""

    batch_size, epochs, name = 64, ENDLESS, "moons"

    def model(self) -> nn.Module:
        """Two layers with a slot between."""
        return nn.Sequential(
            nn.Linear(2, 32), nn.ReLU(), SeedSlot(32, kind="linear"), nn.Linear(32, 2)
        )

    def points(self, samples: int) -> TensorDataset:
        """(samples, 2) points and their half circle's number."""
        angle, label = torch.rand(samples) * torch.pi, torch.arange(samples) % 2
        x = torch.stack([angle.cos() + label, angle.sin() * (1 - 2 * label) + 0.4 * label], dim=1)
        return TensorDataset(x + 0.1 * torch.randn(samples, 2), label)

    def train_data(self) -> TensorDataset:
        """40 batches."""
        return self.points(40 * self.batch_size)

    def validation_data(self) -> TensorDataset:
        """Others."""
        return self.points(256)

    def loss(self, model: nn.Module, batch: list[Tensor]) -> Tensor:
        """Cross-entropy."""
        step("moons")
        return F.cross_entropy(model(batch[0]), batch[1])

    def accuracy(self, model: nn.Module, batch: list[Any]) -> Tensor:
        """Share told apart rightly."""
        right: Tensor = model(batch[0]).argmax(1) == batch[1]
        return right.float().mean()
