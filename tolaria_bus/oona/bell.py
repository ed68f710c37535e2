"""What wakes the event loop when another thread has put something down for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import anyio


class Bell:
    """Wakes a sleeper in another thread, once for however many rings until it listens again."""

    def __init__(self) -> None:
        self._armed = False
        self._wake: Callable[[], None] | None = None
        self.failed = 0

    def attach(self, wake: Callable[[], None] | None) -> None:
        """Call ``wake``, from any thread, at the first ring after each ``arm``."""
        self._wake = wake

    def arm(self) -> None:
        """Listen again. Look for work after this and before sleeping, or a ring is missed."""
        self._armed = True

    def ring(self) -> None:
        """Wake the sleeper if it sleeps; never raises."""
        if self._armed and self._wake is not None:
            self._armed = False
            try:
                self._wake()
            except RuntimeError:
                # The event loop is closed: nobody will come any more. What may not be lost is in
                # the spool.
                self.failed += 1


class Sleeper:
    """Sleeps in the event loop until a bell rings in any thread."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._event = anyio.Event()

    def __enter__(self) -> Sleeper:
        self._bell.attach(self._wake)
        return self

    def __exit__(self, *_: object) -> None:
        self._bell.attach(None)

    async def sleep_unless(self, ready: Callable[[], bool], within: float | None = None) -> None:
        """Sleep until the bell rings, unless there is something to do; at most so many seconds."""
        self._event = anyio.Event()
        self._bell.arm()
        if ready():
            return
        if within is None:
            await self._event.wait()
        else:
            with anyio.move_on_after(within):
                await self._event.wait()

    def _wake(self) -> None:
        if threading.get_ident() == self._thread:
            self._event.set()
        else:
            self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        self._event.set()
