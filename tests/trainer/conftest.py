"""A run without a bus: a small real job, a folder, a mailbox, and everything it said recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

from tolaria_bus.kasmina import SeedSlot
from tolaria_bus.leyline import AdaptationCommand, CommandOutcome, CommandStatus
from tolaria_bus.leyline.codec import encode, from_json, short_name
from tolaria_bus.settings import Settings, load
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox, RecordingOutbound
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.summary import RunSummary
from tolaria_bus.tolaria.trainer import Trainer

STEPS_PER_EPOCH = 16


class Moons:
    """Two noisy half circles; a small net with a slot, and dropout so that generators matter."""

    name = "moons"
    batch_size = 32
    epochs = 4

    def __init__(self, lr: float = 0.01) -> None:
        self.lr = lr

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            SeedSlot(16, kind="linear"),
            nn.Dropout(0.1),
            nn.Linear(16, 2),
        )

    def _data(self, samples: int, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        angle = torch.rand(samples, generator=generator) * torch.pi
        label = torch.arange(samples) % 2
        sign = 1.0 - 2.0 * label
        x = torch.stack([angle.cos() * sign + label, angle.sin() * sign + 0.4 * label], dim=1)
        return TensorDataset(x + 0.05 * torch.randn(x.shape, generator=generator), label)

    def train_data(self) -> TensorDataset:
        return self._data(self.batch_size * STEPS_PER_EPOCH, 1)

    def validation_data(self) -> TensorDataset:
        return self._data(200, 2)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y)

    def accuracy(self, model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        right: Tensor = model(x).argmax(1) == y
        return right.float().mean()

    def optimizer(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=self.lr)


@dataclass
class Run:
    """One process's worth of a run."""

    settings: Settings
    path: Path
    job: Any
    mailbox: Mailbox = field(default_factory=Mailbox)
    outbound: RecordingOutbound = field(default_factory=RecordingOutbound)
    wall_ns: Callable[[], int] | None = None
    _entries: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def send(
        self, text: str, *, entry: str = "", resent: bool = False, **annotations: object
    ) -> None:
        """Post a command, written as its JSON."""
        command = from_json(text, AdaptationCommand)
        for name, value in annotations.items():
            command.annotations[name] = str(value)
        self.mailbox.post(
            Delivery(
                command,
                encode(command),
                stream="oona:{r}:control",
                entry_id=entry or f"1-{next(self._entries)}",
                source="test",
                group="tolaria",
                resent=resent,
            )
        )

    def train(self) -> RunSummary:
        """Train to the end in this thread."""
        with closing(RunFolder.open(self.path, keep=self.settings.checkpoint_keep)) as folder:
            options: dict[str, Any] = {} if self.wall_ns is None else {"wall_ns": self.wall_ns}
            trainer = Trainer(
                view(self.job), self.settings, "r", folder, self.mailbox, self.outbound, **options
            )
            return trainer.run()

    def outcomes(self) -> list[tuple[str, str, int]]:
        """Every outcome: (command id, status, step)."""
        return [
            (item.command_id, short_name(CommandStatus, item.status), item.step)
            for item in self.outbound.outcomes
        ]

    def outcome(self, command_id: str) -> CommandOutcome:
        """The last outcome of a command."""
        return [item for item in self.outbound.outcomes if item.command_id == command_id][-1]

    def events(self) -> list[str]:
        """Names of all events, in order."""
        return [event.event_id for packet, _ in self.outbound.packets for event in packet.events]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Make a run in a folder of its own (``folder=``), with settings as keyword arguments."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)

    def make(folder: str = "run", *, job: Any = None, **settings: Any) -> Run:
        # No test hangs on how fast the machine is.
        settings = {"boundary_ms": 600_000.0, **settings}
        loaded, _ = load(telemetry_seconds=0.0, device="cpu", **settings)
        return Run(loaded, tmp_path / folder, job or Moons())

    return make
