"""Keeping the bus's idea of the server's time right, whether or not anybody measures.

Entry ids are judged by the server's clock. That clock may be set, and after a failover it is
another machine's: a worker that had asked only at its start would then bury every good command.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.connection import ServerClock
from tolaria_bus.oona.events import OnEvent

EVERY: Final = timedelta(minutes=1)


class ClockKeeper:
    """Asks the server for its time, each minute and whenever a connection came back.

    Events: those of :class:`Attempts` for the connection ``clock``.

    Args:
        clock: Is kept.
        client: Any client that doesn't block.
        every: How often it is asked.
        on_event: Told of troubles.
    """

    def __init__(
        self, clock: ServerClock, client: Redis, *, every: timedelta = EVERY, on_event: OnEvent
    ) -> None:
        self._clock = clock
        self._client = client
        self._every = every.total_seconds()
        self._attempts = Attempts("clock", on_event)
        self._asked = anyio.Event()

    def ask(self) -> None:
        """Ask now: there may be another server behind the address."""
        self._asked.set()

    async def run(self) -> None:
        """Keep it until cancelled."""
        while True:
            with anyio.move_on_after(self._every):
                await self._asked.wait()
            self._asked = anyio.Event()
            await self._sync()

    async def _sync(self) -> None:
        while True:
            try:
                await self._clock.sync(self._client)
            except (RedisError, OSError) as error:
                await anyio.sleep(self._attempts.failed(error))
            else:
                self._attempts.answered()
                return
