"""How a step's loss is watched: read one step late, judged against its running mean."""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

SPIKE_FACTOR = 15.0
MEAN_WINDOW = 100
SPIKE_WARMUP = 20
SPIKE_FLOOR = 0.25


class Verdict(StrEnum):
    """Whether a step's loss is sound."""

    OK = "ok"
    NOT_FINITE = "not_finite"
    SPIKE = "spike"


class LossReading(NamedTuple):
    """The loss of one step, the mean of the finite ones before it (0: there is none), a verdict."""

    step: int
    loss: float
    mean: float
    verdict: Verdict


class LossWatch:
    """Hands out each step's loss while the next one runs, and judges it.

    On CUDA the loss is copied to page-locked memory behind the step's own work and read after an
    event, so that the training thread doesn't drain the device's queue.

    Args:
        device: Where the losses are.
        factor: A loss above so many times the running mean is a spike.
        window: Over how many losses the mean runs.
        warmup: No loss is a spike before so many have been seen.
        floor: Nor one that isn't above so many times the mean of the first losses, as many as the
            warm-up has. Without, one hard batch is a spike to a job whose loss has come down to
            almost nothing. Of losses that begin below zero there is no such floor.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        factor: float = SPIKE_FACTOR,
        window: int = MEAN_WINDOW,
        warmup: int = SPIKE_WARMUP,
        floor: float = SPIKE_FLOOR,
    ) -> None:
        self._factor = factor
        self._warmup = warmup
        self._floor = floor
        self._losses: deque[float] = deque(maxlen=window)
        self._first: list[float] = []
        self._last: tuple[int, Callable[[], float]] | None = None
        self._slots = [_PinnedLoss(), _PinnedLoss()] if device.type == "cuda" else None

    def push(self, step: int, loss: Tensor) -> LossReading | None:
        """Take the loss of ``step`` and return the reading of the step before it, if there is one.

        To be called when the step's work has been queued.
        """
        before = self._last
        self._last = (step, self._reader(loss))
        return None if before is None else self._judge(*before)

    def flush(self) -> LossReading | None:
        """Wait for the last step and return its reading; None if it was handed out already."""
        before, self._last = self._last, None
        return None if before is None else self._judge(*before)

    @property
    def mean(self) -> float:
        """The running mean of the finite losses handed out; 0 before the first."""
        return sum(self._losses) / len(self._losses) if self._losses else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the window and the loss not yet handed out, as JSON values. Waits for that one.

        A loss that isn't finite is written as text (``nan``), as JSON has no word for it.
        """
        last = None
        if self._last is not None:
            step, read = self._last
            last = [step, repr(read())]
        return {"losses": list(self._losses), "last": last, "first": list(self._first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._losses.clear()
        self._losses.extend(state["losses"])
        # Of a checkpoint from before there was a floor, it is of what the window has.
        self._first = list(state.get("first", state["losses"][: self._warmup]))
        self._last = None
        if state["last"] is not None:
            step, text = state["last"]
            value = float(text)
            self._last = (step, lambda: value)

    def _least(self) -> float:
        return self._floor * sum(self._first) / max(len(self._first), 1)

    def _reader(self, loss: Tensor) -> Callable[[], float]:
        if self._slots is None:
            return loss.item
        slot = self._slots.pop(0)
        self._slots.append(slot)
        return slot.take(loss)

    def _judge(self, step: int, read: Callable[[], float]) -> LossReading:
        loss = read()
        mean = self.mean
        if not isfinite(loss):
            return LossReading(step, loss, mean, Verdict.NOT_FINITE)
        warm = len(self._losses) >= self._warmup
        spike = warm and mean > 0 and loss > self._factor * mean and loss > self._least()
        if len(self._first) < self._warmup:
            self._first.append(loss)
        self._losses.append(loss)
        return LossReading(step, loss, mean, Verdict.SPIKE if spike else Verdict.OK)


class _PinnedLoss:
    """One loss on its way from the device."""

    def __init__(self) -> None:
        self._host = torch.empty((), dtype=torch.float64, pin_memory=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def take(self, loss: Tensor) -> Callable[[], float]:
        # Converted on the device: a copy between types would go through pageable memory.
        self._host.copy_(loss.double(), non_blocking=True)
        self._arrived.record()
        return self._read

    def _read(self) -> float:
        self._arrived.synchronize()
        return self._host.item()
