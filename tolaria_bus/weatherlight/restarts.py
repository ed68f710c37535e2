"""When a worker that died is started again, and when it is given up.

The waits double from one death to the next. A worker that got further than any process of its run
before counts anew: what kills it every thousand steps shall not end a run that gets on. So does one
whose run went back while it worked: after a rollback further is measured from there.
"""

from __future__ import annotations

from typing import Final

LONGEST: Final = 60.0  # seconds


class Restarts:
    """Counts one run's deaths.

    Args:
        limit: Restarts in a row without progress; then it is given up.
        first: Seconds before the first of them.

    Attributes:
        in_a_row: Deaths since the run last got further.
        total: Restarts so far.
    """

    def __init__(self, *, limit: int, first: float) -> None:
        self.in_a_row = 0
        self.total = 0
        self._limit = limit
        self._first = first
        self._furthest = -1

    def died(self, step: int, began: int = 0) -> float | None:
        """Count a death.

        Args:
            step: The newest that the process had made.
            began: The one that it had begun with; more than ``step`` only after a rollback.

        Returns:
            Seconds to wait before it is started again; ``None``: it is given up.
        """
        if step > self._furthest or step < began:
            self._furthest, self.in_a_row = step, 0
        self.in_a_row += 1
        if self.in_a_row > self._limit:
            return None
        self.total += 1
        wait: float = self._first * 2 ** (self.in_a_row - 1)
        return min(wait, LONGEST)
