"""Perceptrons of known sizes, and the plainest loop that trains one.

Each notes the clock at each of its steps where it is asked to. So the bare loop and the trainer are
timed by the same few instructions, in the user's code, and neither start nor end of a run counts.
"""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset, Subset, TensorDataset

_FEW = 16
"""Batches of which the data consist: what they are isn't to be learnt, and many take memory."""


class Perceptron:
    """Linear layers on random data; one epoch has all the steps.

    Attributes:
        steps: In an epoch; as many as nobody reaches.
        stamps: Where to note the clock: first how many times it was, then each, in seconds.
    """

    batch_size: int
    epochs = 1
    schedule = "constant"
    steps: int
    width: int
    hidden: tuple[int, ...]
    stamps: ClassVar[memoryview | None] = None

    def model(self) -> nn.Module:
        """Linear layers with ReLU between."""
        layers: list[nn.Module] = []
        width = self.width
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, 10))

    def few(self) -> TensorDataset:
        """The samples that there are."""
        generator = torch.Generator().manual_seed(0)
        samples = self.batch_size * _FEW
        images = torch.randn(samples, self.width, generator=generator)
        return TensorDataset(images, torch.arange(samples) % 10)

    def train_data(self) -> Dataset[tuple[Tensor, ...]]:
        """Those samples, over and over: as many as one epoch needs."""
        few = self.few()
        return Subset(few, (torch.arange(self.batch_size * self.steps) % len(few)).tolist())

    def validation_data(self) -> TensorDataset:
        """One batch: validation isn't measured here."""
        return TensorDataset(torch.randn(32, self.width), torch.arange(32) % 10)

    def loss(self, model: nn.Module, batch: list[Tensor]) -> Tensor:
        """Mean cross-entropy."""
        stamps = self.stamps
        if stamps is not None and model.training:
            count = int(stamps[0]) + 1
            stamps[count] = time.monotonic()
            stamps[0] = count
        return F.cross_entropy(model(batch[0]), batch[1])

    def optimizer(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW as torch gives it."""
        return torch.optim.AdamW(params, lr=1e-4)


class Tiny(Perceptron):
    """Steps of a fraction of a millisecond: the hardest case for whatever a step costs extra."""

    name = "bench_tiny"
    batch_size = 32
    width = 32
    hidden = (32,)
    steps = 200_000


class Small(Perceptron):
    """67 thousand parameters, steps of about 1 ms on one or two cores."""

    name = "bench_small"
    batch_size = 128
    width = 128
    hidden = (256, 128)
    steps = 60_000


class Medium(Perceptron):
    """1.5 million parameters, steps of about 10 ms."""

    name = "bench_medium"
    batch_size = 128
    width = 640
    hidden = (1024, 768)
    steps = 10_000


class Large(Perceptron):
    """4.6 million parameters, steps of tens of milliseconds."""

    name = "bench_large"
    batch_size = 128
    width = 1024
    hidden = (1792, 1536)
    steps = 5_000


def bare(job: Perceptron) -> None:
    """Train the job for an epoch with the plainest loop in PyTorch."""
    torch.manual_seed(0)
    model = job.model()
    images, labels = job.few().tensors
    optimizer = job.optimizer(list(model.parameters()))
    order = torch.randperm(job.steps * job.batch_size) % len(images)
    model.train()
    for indices in torch.split(order, job.batch_size):
        batch = [images[indices], labels[indices]]
        optimizer.zero_grad(set_to_none=True)
        loss = job.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
