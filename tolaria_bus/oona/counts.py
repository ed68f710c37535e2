"""Plain numbers, counted where things happen; who wants to show them reads them when asked.

Adding to one costs a fraction of a microsecond and takes no lock: each is written by one thread,
or under its owner's lock, and read by any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

BOUNDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
)  # fmt: skip
"""Upper bounds in seconds: from a round trip on one machine to what nobody should see."""


class Latency:
    """How long something took, as a histogram over ``BOUNDS``.

    Attributes:
        total: Sum of all that was observed, in seconds.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._counts = [0] * (len(BOUNDS) + 1)

    def observe(self, seconds: float) -> None:
        """Count one; a clock that went back counts as no time."""
        seconds = max(seconds, 0.0)
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[int]:
        """How many took at most each bound; the last one is how many there were."""
        sums: list[int] = []
        below = 0
        for count in list(self._counts):
            below += count
            sums.append(below)
        return sums


@dataclass(slots=True)
class StreamCounts:
    """What an outbox did for one stream.

    Attributes:
        published: Packets that the server has.
        spooled: Packets that were put into the spool.
        folded: Repeated alerts that were held back.
        shed: Packets that were refused, by priority.
        latency: From ``put`` to the server's reply: of every packet of priority HIGH and above,
            and of one in 64 of the others.
    """

    published: int = 0
    spooled: int = 0
    folded: int = 0
    shed: Counter[int] = field(default_factory=Counter)
    latency: Latency = field(default_factory=Latency)
