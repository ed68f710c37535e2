"""How long to wait before the next try.

The jitter has a generator of its own: a run that is to be repeated bit for bit can't share the
global one with the network's moods.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Waits after the first, second, ... failure in a row; the last one from then on."""


class Backoff:
    """Waits that grow with each failure in a row.

    Attributes:
        failures: Failures since the last success.
    """

    def __init__(self, seconds: Sequence[float] = SECONDS) -> None:
        self.failures = 0
        self._seconds = seconds
        self._random = random.Random()

    def next(self) -> float:
        """Count a failure; seconds to wait, spread by a quarter so that workers don't march."""
        wait = self._seconds[min(self.failures, len(self._seconds) - 1)]
        self.failures += 1
        return wait * self._random.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Count a success."""
        self.failures = 0
