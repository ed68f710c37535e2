"""Who signs in bulk lets an alert go first."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio


class GiveWay:
    """Lets an alert go first: while one is on its way, bulk isn't sealed, for a moment.

    Signing a batch takes longer than an alert's way to the server; and each turn of the event loop
    that the alert needs would be one after another piece of that batch. It never takes more than a
    fifth of bulk's time: alerts may be many, or their connection slow, or gone.

    Args:
        urgent: Is there something that has to go first?
        monotonic: Seconds.
    """

    _SECONDS = 0.002
    _PAUSE = 0.008

    def __init__(
        self, urgent: Callable[[], bool], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._urgent = urgent
        self._monotonic = monotonic
        self._next = 0.0
        self._gone = anyio.Event()

    def due(self) -> bool:
        """Should bulk wait now?"""
        return self._urgent() and self._monotonic() >= self._next

    def gone(self) -> None:
        """What was urgent is on its stream."""
        self._gone.set()
        self._gone = anyio.Event()

    async def wait(self) -> None:
        """Until then, or until the moment is over."""
        with anyio.move_on_after(self._SECONDS):
            await self._gone.wait()
        self._next = self._monotonic() + self._PAUSE
