"""The ready jobs, made small, with a trap: one value of a hyperparameter that ends the process."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from tolaria_bus.jobs.bytes_lm import BytesLM
from tolaria_bus.jobs.digits import Digits

TRAP = 0.666
"""A weight decay. A process that sets it is killed at once, as by a fault in native code."""


class _Group(dict[str, Any]):
    """A parameter group of an optimizer, trapped."""

    def update(self, *args: Any, **values: Any) -> None:
        """As a dict's."""
        changes = dict(*args, **values)
        if changes.get("weight_decay") == TRAP:
            os.kill(os.getpid(), signal.SIGKILL)
        super().update(changes)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})


def _trapped(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([_Group(params=list(params), lr=lr)])


class SmallDigits(Digits):
    """``digits`` with 22 steps of about a millisecond in each epoch."""

    def __init__(self, width: int = 4, batch_size: int = 64) -> None:
        super().__init__(width=width, batch_size=batch_size)

    def optimizer(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW, trapped."""
        return _trapped(params, self.lr)


class SmallBytes(BytesLM):
    """``bytes_lm`` with dropout, on the first pages of its text: 25 short steps in each epoch."""

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__(width=32, depth=1, context=32, batch_size=batch_size, dropout=0.1)

    def train_data(self) -> TensorDataset:
        """The first windows of the text."""
        return TensorDataset(super().train_data().tensors[0][: 25 * self.batch_size])

    def validation_data(self) -> TensorDataset:
        """The first of those held out."""
        return TensorDataset(super().validation_data().tensors[0][: 2 * self.batch_size])

    def optimizer(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW, trapped."""
        return _trapped(params, self.lr)
