"""Handwritten digits: 1,797 images of 8 x 8, a small convolutional net, 98 % in five seconds.

The shortest real job: it shows what a job needs, and one slot in which a seed can be grown.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

from tolaria_bus.kasmina import SeedSlot
from tolaria_bus.tolaria.engine.job import JobError
from tolaria_bus.tolaria.engine.optimizer import default_optimizer

_HELD_OUT = 0.2
_CLASSES = 10


class DigitsNet(nn.Module):
    """Three convolutions, a seed slot behind the first, a linear layer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.slot = SeedSlot(width)
        self.body = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.tail = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width * 4, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) → (N, 10) logits."""
        x = self.slot(F.relu(self.stem(images)))
        x = F.max_pool2d(F.relu(self.body(x)), 2)
        x = F.max_pool2d(F.relu(self.tail(x)), 2)
        logits: Tensor = self.head(self.dropout(x.flatten(1)))
        return logits


class Digits:
    """The job; every argument is an option (``--option width=32``)."""

    name = "digits"

    def __init__(
        self,
        width: int = 16,
        batch_size: int = 32,
        epochs: int = 20,
        lr: float = 3e-3,
        dropout: float = 0.1,
        schedule: str = "cosine",
    ) -> None:
        if width < 1 or batch_size < 1 or epochs < 1:
            raise JobError("digits: width, batch_size and epochs must be 1 or more")
        if not 0 <= dropout < 1:
            raise JobError(f"digits: dropout is {dropout}; it must be from 0 to below 1")
        self.width = width
        self.batch_size = batch_size
        self.epochs = epochs
        self.lr = lr
        self.dropout = dropout
        self.schedule = schedule

    def model(self) -> nn.Module:
        """Make the net."""
        return DigitsNet(self.width, self.dropout)

    def train_data(self) -> TensorDataset:
        """Four fifths of the images, the same ones each time, each digit in proportion."""
        return _split()[0]

    def validation_data(self) -> TensorDataset:
        """The other fifth."""
        return _split()[1]

    def loss(self, model: nn.Module, batch: list[Tensor], reduction: str = "mean") -> Tensor:
        """Cross-entropy, the mean or that of each digit; with smoothed labels while training."""
        images, labels = batch
        # Without it the loss comes down to almost nothing, and one hard batch looks like a spike.
        smoothing = 0.1 if model.training else 0.0
        logits = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction=reduction)

    def accuracy(self, model: nn.Module, batch: list[Tensor]) -> Tensor:
        """Share of digits named right."""
        images, labels = batch
        right: Tensor = model(images).argmax(1) == labels
        return right.float().mean()

    def optimizer(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW."""
        return default_optimizer(params, lr=self.lr)


@cache
def _split() -> tuple[TensorDataset, TensorDataset]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise JobError(
            "the job digits needs scikit-learn for its data: pip install 'tolaria-bus[examples]'"
        ) from error
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(found.target, dtype=torch.int64)
    # A generator of its own: which images are held out never depends on a run's seed.
    draw = np.random.default_rng(0)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(_CLASSES):
        members = draw.permutation(np.flatnonzero(found.target == digit))
        held_out[members[: round(len(members) * _HELD_OUT)]] = True
    test = torch.from_numpy(held_out)
    return TensorDataset(images[~test], labels[~test]), TensorDataset(images[test], labels[test])
