"""What must be over within so many seconds, and what a rollback spends its own on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

FAST_SECONDS: Final = 0.5
"""A rollback from memory must be over by then: validate 150 ms, restore 250, resume 100."""
FULL_SECONDS: Final = 12.0
"""And one from a checkpoint."""


class Clears(Protocol):
    """A deadline that was set."""

    def clear(self) -> None:
        """What it was set for is over."""


Deadlines = Callable[[str, float], Clears]
"""Says to whoever watches that something must be over within so many seconds."""


class _NoDeadline:
    def clear(self) -> None:
        pass


def no_deadline(name: str, seconds: float) -> Clears:
    """Nobody watches."""
    del name, seconds
    return _NoDeadline()


class Way:
    """A rollback under way: its deadline, and when each of its phases began.

    Args:
        deadlines: Where its deadline is set, now: that of one from memory.
        wall_ns: Wall clock.

    Attributes:
        marks: Each phase and its start, in nanoseconds of the wall clock.
    """

    def __init__(self, deadlines: Deadlines, wall_ns: Callable[[], int]) -> None:
        self.marks: list[tuple[str, int]] = []
        self._deadlines = deadlines
        self._wall_ns = wall_ns
        self._deadline = deadlines("rollback", FAST_SECONDS)

    def enters(self, phase: str) -> None:
        """A phase begins; an empty name: all is over."""
        self.marks.append((phase, self._wall_ns()))

    def takes_longer(self) -> None:
        """It is one from a checkpoint."""
        self._deadline.clear()
        self._deadline = self._deadlines("rollback", FULL_SECONDS)

    def ends(self) -> None:
        """It is over, or given up: nobody has to be told any more."""
        self._deadline.clear()
