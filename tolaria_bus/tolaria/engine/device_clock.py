"""How long the phases of a step take on an accelerator, without waiting for it.

The training thread runs ahead of the device: its own clock sees how long queueing a phase's work
took. Here events are put into the device's queue between the phases of some steps, and read some
steps later, when the device has passed them. What is between two events is the time in which the
device worked on a phase, or waited for its work to be queued.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Final

import torch

from tolaria_bus.tolaria.engine.phases import (
    AGGREGATION,
    BACKWARD,
    DATA,
    FORWARD,
    OPTIMIZER,
    PREPARE,
    SIDE,
    Times,
)

ON_DEVICE: Final = (DATA, PREPARE, FORWARD, BACKWARD, AGGREGATION, SIDE, OPTIMIZER)
"""Phases of a step: the others are not the device's."""
ONE_IN: Final = 16
"""Steps of which one is measured: an event costs the training thread some microseconds."""
_PENDING: Final = 8
"""Measured steps whose events may still be ahead of the device; more aren't begun."""

Marks = list[tuple[str, torch.cuda.Event]]


class DeviceClock:
    """Measures one step in so many. Training thread only; a listener of the ``PhaseClock``.

    Args:
        device: A CUDA device.

    Attributes:
        times: By phase.
    """

    def __init__(self, device: torch.device) -> None:
        self.times = {phase: Times() for phase in ON_DEVICE}
        self._stream = torch.cuda.current_stream(device)
        self._marks: Marks | None = None
        self._pending: deque[Marks] = deque()
        self._free: list[torch.cuda.Event] = []
        self._steps = 0

    def enters(self, phase: str) -> None:
        """The training thread begins a phase."""
        if phase == DATA and self._marks is None:
            self._steps += 1
            if self._steps % ONE_IN == 0 and len(self._pending) < _PENDING:
                self._marks = []
        if self._marks is None:
            return
        event = self._free.pop() if self._free else _event()
        event.record(self._stream)
        self._marks.append((phase, event))
        if phase not in self.times:
            self._pending.append(self._marks)
            self._marks = None

    def read(self) -> None:
        """Take in what the device has passed by now; waits for nothing."""
        while self._pending and self._pending[0][-1][1].query():  # type: ignore[no-untyped-call]
            marks = self._pending.popleft()
            for (phase, start), (_, end) in pairwise(marks):
                self.times[phase].add(int(start.elapsed_time(end) * 1e6))
            self._free += [event for _, event in marks]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
