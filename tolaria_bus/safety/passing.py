"""Signals that a supervisor passes on to the workers beside it, though there is no server.

A file ``passed_on`` in a run's folder, laid out as the signal block is, of which only its signals
are used: the supervisor leaves them, the worker takes them. What is taken is known by its number,
and what was left long ago stops nobody today.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tolaria_bus.leyline import EmergencySignal
from tolaria_bus.leyline.codec import encode
from tolaria_bus.safety.signals import Signals
from tolaria_bus.safety.watching import LeftSignal, SignalView

NAME: Final = "passed_on"
FRESH: Final = timedelta(seconds=60)
"""As long as a signal may be on its way; see the bus's staleness."""


def pass_on(folder: Path, signal: EmergencySignal) -> bool:
    """Leave a signal for the worker that holds a run's folder.

    Returns:
        False if it is larger than a slot; then only the bus carries it.

    Raises:
        OSError: There is no such folder, or no room for the file.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Numbers go on from those that are there: one writer at a time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        signals = Signals.create(folder, NAME)
        try:
            return signals.emergency(encode(signal))
        finally:
            signals.close()
    finally:
        os.close(lock)


def fresh(left: LeftSignal, signal: EmergencySignal, *, monotonic_ns: int, wall_ns: int) -> bool:
    """Was it left just now? By both clocks: the one begins anew at a boot, the other may be set."""
    seconds = FRESH.total_seconds()
    age = (monotonic_ns - left.given_ns) / 1e9
    wall_age = (wall_ns - signal.triggered_at.ToNanoseconds()) / 1e9
    return 0 <= age <= seconds and abs(wall_age) <= seconds


class PassedOn:
    """The worker's side.

    Args:
        folder: The run's.
        monotonic_ns: The machine's clock.
        wall_ns: The wall clock, that of messages.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._view = SignalView(folder, NAME)
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._view.close()

    def take(self) -> list[EmergencySignal]:
        """What has come since the last look, in its order.

        Raises:
            DecodeError: What was left is no signal. It isn't looked at again.
        """
        if not self._view.refresh():
            return []
        found = []
        for left in self._view.unrelayed():
            self._view.relayed(left.number)
            signal = EmergencySignal.FromString(left.payload)
            now, wall = self._monotonic_ns(), self._wall_ns()
            if fresh(left, signal, monotonic_ns=now, wall_ns=wall):
                found.append(signal)
        return found
