"""What is known of the tasks' gradients: on the device until telemetry asks for it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tolaria_bus.kasmina import HOST
from tolaria_bus.tolaria.engine.aggregation.combining import Combined


class TaskReading(NamedTuple):
    """What is known of one task.

    Attributes:
        task: ``host``, or the seed's id.
        share: Its mean share of a sample in the newest batch.
        norm: 2-norm of its gradient of the shared parameters in the newest step; NaN without a
            handler, as nobody knows it then.
        own_norm: 2-norm of its own parameters' gradient, as the optimizer got it; NaN for the host.
        conflicts: Steps in which its gradient and another one's pointed against each other.
        left_out: Steps in which its gradient wasn't finite.
        mask: Elements of the parameters that are its own; of the shared ones for the host.
    """

    task: str
    share: float
    norm: float
    own_norm: float
    conflicts: int
    left_out: int
    mask: int


class TaskWatch:
    """Keeps, for the tasks of now, what a step found out. Counts begin with a task.

    Args:
        device: Where the gradients are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tasks: tuple[str, ...] | None = None
        self._shares: Tensor | None = None
        self._norms: Tensor | None = None
        self._counts = torch.zeros(2, 0, dtype=torch.int64, device=device)
        self._refused = torch.zeros((), dtype=torch.int64, device=device)
        self._own: list[list[nn.Parameter]] = []
        self._masks: list[int] = []

    def begin(self, tasks: tuple[str, ...]) -> None:
        """The next step has these seeds as tasks."""
        if tasks == self._tasks:
            return
        before = (HOST, *(self._tasks or ()))
        zero = torch.zeros(2, dtype=torch.int64, device=self._device)
        columns = dict(zip(before, self._counts.unbind(1), strict=False))
        self._counts = torch.stack([columns.get(name, zero) for name in (HOST, *tasks)], dim=1)
        self._tasks = tasks
        self._shares = self._norms = None
        self._own, self._masks = [], []

    def scalar(self, value: float) -> Tensor:
        """Return a float64 scalar on the device, without a copy from the host's memory."""
        return torch.full((), value, dtype=torch.float64, device=self._device)

    def note_members(
        self, shared: Sequence[nn.Parameter], own: Sequence[Sequence[nn.Parameter]]
    ) -> None:
        """These parameters are shared, and these the tasks' own."""
        self._own = [list(parameters) for parameters in own]
        self._masks = [sum(p.numel() for p in parameters) for parameters in (shared, *own[1:])]

    def note_shares(self, shares: Tensor, refused: Tensor) -> None:
        """A batch was attributed, and some of it wasn't as it must be."""
        self._shares = shares.mean(0)
        self._refused += refused

    def note_gradients(self, found: Combined) -> None:
        """A step's gradients were handled."""
        self._norms = found.gram.diagonal().sqrt()
        self._counts[0] += found.against
        self._counts[1] += ~found.finite

    @property
    def refused(self) -> int:
        """Samples whose attribution was none, since the start. Waits for the device."""
        return int(self._refused)

    def readings(self, scale: float = 1.0) -> list[TaskReading]:
        """Return what is known of each task, the host first; empty before a step had several.

        Waits for the device.

        Args:
            scale: Of fp16 gradients: what norms are divided by.
        """
        if not self._tasks or self._shares is None:
            return []
        tasks = (HOST, *self._tasks)
        unknown = [float("nan")] * len(tasks)
        norms = unknown if self._norms is None else (self._norms / scale).tolist()
        own = [_norm(parameters) for parameters in self._own] or unknown
        conflicts, left_out = self._counts.tolist()
        masks = self._masks or [0] * len(tasks)
        return [
            TaskReading(*values)
            for values in zip(
                tasks, self._shares.tolist(), norms, own, conflicts, left_out, masks, strict=True
            )
        ]


def _norm(parameters: Sequence[nn.Parameter]) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else float("nan")
