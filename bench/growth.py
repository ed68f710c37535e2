"""Does growing help? A host that is too small, alone and with what the shipped Tamiyo does to it.

Digits, a net of width 2 with three places where a seed can grow; the same data, batches, steps and
first weights in each arm of a round, another seed of randomness in each round. The run and Tamiyo
see one half of the held-out images; accuracy and loss are of the other half, at the end, which
neither has seen. Beside it a larger net from the start. Figures are as they are.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

from bench.harness import Figure, Result
from tolaria_bus.jobs.digits import Digits
from tolaria_bus.leyline import SeedLifecycleStage, SystemStatePacket
from tolaria_bus.leyline.annotations import IN_REPLY_TO, TAMIYO
from tolaria_bus.leyline.codec import encode
from tolaria_bus.settings import load
from tolaria_bus.tamiyo import Heuristic, History, Limits, nothing
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox, RecordingOutbound
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.trainer import Trainer

SEEDS: Final = 5
EPOCHS: Final = 80
SMALL: Final = 2
LARGER: Final = 3
"""Widths of the nets."""


class SmallDigits(Digits):
    """Digits whose held-out images are halved: one half for the run, one for nobody."""

    name = "bench_growth"
    seed_slots = ("body", "tail")

    def __init__(self, width: int) -> None:
        super().__init__(width=width, epochs=EPOCHS, dropout=0.0, schedule="constant")

    def validation_data(self) -> TensorDataset:
        """The run's half."""
        return self._half(0)

    def unseen(self) -> TensorDataset:
        """Nobody's."""
        return self._half(1)

    def _half(self, which: int) -> TensorDataset:
        images, labels = super().validation_data().tensors
        return TensorDataset(images[which::2], labels[which::2])


@dataclass
class Answering(RecordingOutbound):
    """The shipped policy and limits, without a bus between."""

    mailbox: Mailbox = field(default_factory=Mailbox)
    policy: Heuristic = field(default_factory=Heuristic)
    history: History = field(default_factory=History)

    def state(self, packet: SystemStatePacket) -> None:
        """Answer at once."""
        command = self.policy(packet, self.history.before(packet)) or nothing()
        self.history = self.history.then(packet)
        if Limits().refuses(command, packet):
            command = nothing()
        command.command_id, command.issued_by = packet.packet_id, TAMIYO
        command.annotations[IN_REPLY_TO] = packet.packet_id
        self.mailbox.post(
            Delivery(command, encode(command), entry_id=packet.packet_id, source=TAMIYO)
        )


@dataclass(frozen=True)
class Measured:
    """A run at its end: on the images that nobody saw, and its size."""

    accuracy: float
    loss: float
    parameters: float
    fossils: float


def run() -> Result:
    """Each arm with each seed."""
    arms: dict[str, Callable[[int], Measured]] = {
        f"width {SMALL} alone": lambda seed: _train(seed, SMALL, None),
        f"width {SMALL}, Tamiyo without seeds": lambda seed: _train(
            seed, SMALL, Heuristic(grow=False)
        ),
        f"width {SMALL}, Tamiyo": lambda seed: _train(seed, SMALL, Heuristic()),
        f"width {LARGER} alone": lambda seed: _train(seed, LARGER, None),
    }
    result = Result("growth", f"digits, {EPOCHS} epochs, {SEEDS} seeds of randomness")
    found = {name: [train(seed) for seed in range(SEEDS)] for name, train in arms.items()}
    alone = found[f"width {SMALL} alone"]
    for name, measured in found.items():
        for what, unit in (("accuracy", "%"), ("loss", ""), ("parameters", ""), ("fossils", "")):
            values = [getattr(one, what) for one in measured]
            base = [getattr(one, what) for one in alone]
            result.figures.append(
                Figure(
                    what=f"{name}: {what}",
                    value=statistics.median(values),
                    unit=unit,
                    baseline=None if measured is alone else statistics.median(base),
                    low=min(values),
                    high=max(values),
                    rounds=len(values),
                )
            )
    return result


def _train(seed: int, width: int, policy: Heuristic | None) -> Measured:
    settings, _ = load(
        (),
        device="cpu",
        threads=1,
        seed=seed,
        tamiyo="off" if policy is None else "blocking",
        boundary_ms=600_000.0,
        checkpoint_every_epochs=EPOCHS,
        snapshot_every_steps=None,
        snapshot_at_epochs=False,
        checkpoint_writer="thread",
    )
    job, mailbox = SmallDigits(width), Mailbox()
    outbound = RecordingOutbound()
    if policy is not None:
        outbound = Answering(mailbox=mailbox, policy=policy)
    with (
        tempfile.TemporaryDirectory(prefix="tolaria-bench-") as path,
        closing(RunFolder.open(Path(path) / "r")) as folder,
    ):
        trainer = Trainer(view(job), settings, "r", folder, mailbox, outbound)
        trainer.run()
        state = trainer.state
        ended = (
            SeedLifecycleStage.SEED_STAGE_FOSSILIZED,
            SeedLifecycleStage.SEED_STAGE_TERMINATED,
        )
        fossils = sum(one.stage in ended for one in state.kasmina.seed_states())
        return _measure(state.model, job.unseen(), fossils)


def _measure(model: nn.Module, unseen: TensorDataset, fossils: int) -> Measured:
    images, labels = unseen.tensors
    model.eval()
    with torch.no_grad():
        logits = model(images)
    return Measured(
        accuracy=100.0 * float((logits.argmax(1) == labels).float().mean()),
        loss=float(F.cross_entropy(logits, labels)),
        parameters=float(sum(parameter.numel() for parameter in model.parameters())),
        fossils=float(fossils),
    )
