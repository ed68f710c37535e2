"""Jobs of a known size, which also keep the time.

They note the clock at two of their own steps. So the bare loop and the trainer are timed by the
same few instructions, in the user's code, and neither start nor end of a run counts.
"""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

WARMUP = 50
"""Steps before the clock starts: first-touch of memory, caches, the optimizer's state."""


class TimedJob:
    """A perceptron on random data that are not to be learnt; one epoch has all its steps.

    Attributes:
        timed: Steps between the two looks at the clock.
        seconds: Between them, of the newest run in this process.
    """

    batch_size: int
    epochs = 1
    schedule = "constant"
    width: int
    hidden: tuple[int, ...]
    timed: int
    seconds: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self._calls = 0
        self._start = 0.0

    @property
    def steps(self) -> int:
        """Steps of a run in all."""
        return WARMUP + self.timed + 1

    def model(self) -> nn.Module:
        """Linear layers with ReLU between."""
        layers: list[nn.Module] = []
        width = self.width
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, 10))

    def train_data(self) -> TensorDataset:
        """As many samples as one epoch needs; large ones share their memory."""
        samples = self.batch_size * self.steps
        generator = torch.Generator().manual_seed(0)
        few = torch.randn(self.batch_size * 16, self.width, generator=generator)
        images = few if samples <= len(few) else few.repeat(samples // len(few) + 1, 1)[:samples]
        return TensorDataset(images[:samples], torch.arange(samples) % 10)

    def validation_data(self) -> TensorDataset:
        """One batch: validation isn't measured here."""
        return TensorDataset(torch.randn(32, self.width), torch.arange(32) % 10)

    def loss(self, model: nn.Module, batch: list[Tensor]) -> Tensor:
        """Mean cross-entropy, and at two of the steps a look at the clock."""
        if model.training:
            if self._calls == WARMUP:
                self._start = time.perf_counter()
            elif self._calls == WARMUP + self.timed:
                type(self).seconds = time.perf_counter() - self._start
            self._calls += 1
        return F.cross_entropy(model(batch[0]), batch[1])

    def optimizer(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW as torch gives it."""
        return torch.optim.AdamW(params, lr=1e-4)


class Tiny(TimedJob):
    """Steps of a fraction of a millisecond: the hardest case for whatever a step costs extra."""

    name = "bench_tiny"
    batch_size = 32
    width = 32
    hidden = (32,)
    timed = 3000


class Small(TimedJob):
    """67 thousand parameters, steps of about 1 ms on one or two cores."""

    name = "bench_small"
    batch_size = 128
    width = 128
    hidden = (256, 128)
    timed = 1500


class Medium(TimedJob):
    """1.5 million parameters, steps of about 10 ms."""

    name = "bench_medium"
    batch_size = 128
    width = 640
    hidden = (1024, 768)
    timed = 150


class Large(TimedJob):
    """4.6 million parameters, steps of tens of milliseconds."""

    name = "bench_large"
    batch_size = 128
    width = 1024
    hidden = (1792, 1536)
    timed = 40


def bare(job: TimedJob) -> float:
    """Train the job with the plainest loop in PyTorch; mean seconds a step."""
    torch.manual_seed(0)
    model = job.model()
    data = job.train_data()
    optimizer = job.optimizer(list(model.parameters()))
    order = torch.split(torch.randperm(len(data)), job.batch_size)
    model.train()
    for indices in order:
        batch = [tensor[indices] for tensor in data.tensors]
        optimizer.zero_grad(set_to_none=True)
        loss = job.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return type(job).seconds / job.timed
