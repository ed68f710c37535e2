"""Budgets of time: how long the phases of something may take, and how long they do take."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

WINDOW = 256
"""Measurements that percentiles are of."""
BOUNDS_MS: Final = (0.1, 0.5, 1.0, 1.5, 3.5, 5.0, 12.0, 18.0, 50.0, 200.0, 2000.0, math.inf)
"""Upper bounds of the classes of a histogram, the limits of an epoch's end among them."""


@dataclass(frozen=True)
class Breach:
    """A phase that took longer than it may.

    Attributes:
        phase: Which one; ``total`` for all together.
        took_ms: How long it took, in milliseconds.
        limit_ms: How long it may take, in milliseconds.
    """

    phase: str
    took_ms: float
    limit_ms: float

    def __str__(self) -> str:
        return f"{self.phase} {self.took_ms:.3g} ms (limit {self.limit_ms:g})"


@dataclass(frozen=True)
class Budget:
    """How long each phase may take, and all of them together.

    Attributes:
        limits_ms: By phase, in milliseconds.
        total_ms: For the sum, in milliseconds.
    """

    limits_ms: Mapping[str, float]
    total_ms: float

    def scaled(self, total_ms: float) -> Budget:
        """The same shares of another total, in milliseconds."""
        factor = total_ms / self.total_ms
        return Budget({phase: limit * factor for phase, limit in self.limits_ms.items()}, total_ms)

    def breaches(self, took_ms: Mapping[str, float]) -> list[Breach]:
        """What was over its limit; phases without a limit don't count.

        Args:
            took_ms: By phase, in milliseconds.
        """
        limits = self.limits_ms
        counted = {phase: took for phase, took in took_ms.items() if phase in limits}
        found = [
            Breach(phase, took, limits[phase])
            for phase, took in counted.items()
            if took > limits[phase]
        ]
        total = sum(counted.values())
        if total > self.total_ms:
            found.append(Breach("total", total, self.total_ms))
        return found


class Durations:
    """The last durations of one phase with their percentiles, and a histogram of all.

    Args:
        window: How many are remembered.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._last: deque[float] = deque(maxlen=window)
        self._counts = [0] * len(BOUNDS_MS)

    def add(self, milliseconds: float) -> None:
        """One more."""
        self._last.append(milliseconds)
        self._counts[bisect_left(BOUNDS_MS, milliseconds)] += 1

    def cumulated(self) -> list[tuple[float, int]]:
        """Each of ``BOUNDS_MS`` with how many durations of all were no longer, in milliseconds."""
        return list(zip(BOUNDS_MS, accumulate(self._counts), strict=True))

    def percentile(self, percent: float) -> float:
        """The smallest duration that so many per cent of the remembered ones don't exceed.

        Args:
            percent: 0 to 100 (nearest rank).

        Returns:
            Milliseconds; 0 if there is none yet.
        """
        if not self._last:
            return 0.0
        ordered = sorted(self._last)
        rank = -int(-len(ordered) * percent // 100)
        return ordered[min(max(rank, 1), len(ordered)) - 1]
