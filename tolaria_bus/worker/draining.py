"""The end of a worker's bus: nothing more is read, what was said goes out, the lease goes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

import anyio
from redis.exceptions import RedisError

from tolaria_bus.oona.consumer import Consumer
from tolaria_bus.oona.events import reason_of
from tolaria_bus.oona.lease import Lease
from tolaria_bus.oona.publisher import Publisher

_LEASE_SECONDS: Final = 1.0
"""Of a drain, kept for giving the lease back."""


class Drain:
    """One drain, of ``within`` in all: :meth:`send`, then :meth:`give_back`."""

    def __init__(self, within: timedelta) -> None:
        seconds = within.total_seconds()
        self._within = within
        self._until = anyio.current_time() + seconds
        # The lease has its turn also where all else took as long as it may.
        self._sent_until = self._until - min(_LEASE_SECONDS, seconds / 5)

    async def send(self, consumers: Sequence[Consumer], publisher: Publisher) -> int:
        """Stop reading and send what was said; how many packets are left."""
        with anyio.CancelScope(deadline=self._sent_until):
            async with anyio.create_task_group() as stopping:
                for consumer in consumers:
                    stopping.start_soon(consumer.stop, self._within)
        seconds = max(0.0, self._sent_until - anyio.current_time())
        return await publisher.drain(timedelta(seconds=seconds))

    async def give_back(self, lease: Lease, then: Callable[[], Awaitable[object]]) -> str:
        """Let the next worker have the run at once; why that couldn't be, or nothing.

        Args:
            lease: Of the run.
            then: What is left to do at the server.
        """
        try:
            with anyio.CancelScope(deadline=self._until):
                await lease.release()
                await then()
                return ""
        except (RedisError, OSError) as error:
            return reason_of(error)
        return "no answer"
