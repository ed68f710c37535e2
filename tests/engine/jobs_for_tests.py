"""Jobs that ``module:attribute`` finds."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset


class Line:
    """Fits a line; its data and weights are drawn from the global generators on purpose."""

    # ``size`` is not annotated on purpose: its default says what it is.
    def __init__(
        self, width: int = 4, lr: float = 0.1, shift: bool = False, kind: str = "a", size=3
    ) -> None:
        self.width, self.lr, self.shift, self.kind, self.size = width, lr, shift, kind, size

    def model(self) -> Any:
        return nn.Sequential(nn.Linear(2, self.width), nn.Tanh(), nn.Linear(self.width, 1))

    def train_data(self) -> TensorDataset:
        x = torch.randn(64, 2)
        return TensorDataset(x, x.sum(1, keepdim=True))

    def validation_data(self) -> TensorDataset:
        x = torch.randn(10, 2)
        return TensorDataset(x, x.sum(1, keepdim=True))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(model(x), y)


class Picky:
    def __init__(self, depth: int) -> None:
        raise ValueError(f"depth {depth}\nis not to my taste")


def factory(width: int = 2) -> Line:
    return Line(width)


job = Line()
nothing = object()
