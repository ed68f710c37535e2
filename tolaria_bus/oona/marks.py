"""Marks of entries whose handling was begun, in a hash on the server; see ``consumer``.

A mark is set before the handler gets an entry. Where the handler takes it on, the mark goes, with
all that were left by processes that died. Where it fails, or the entry only has to wait behind
another, this one mark is taken back, and those of the dead stay.
"""

from __future__ import annotations

from typing import Any

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.events import OnEvent
from tolaria_bus.oona.reading import Member


class Marks:
    """What one consumer says about the entries that it begins.

    Events: those of :class:`Attempts`, for tries after the first.

    Args:
        client: Not the one that blocks.
        member: Which consumer.
        key: Of the hash: entry id, and how often its handling was begun.
        max_deliveries: How often an entry may kill its process.
        on_event: Told of troubles.
    """

    def __init__(
        self, client: Redis, member: Member, key: str, max_deliveries: int, on_event: OnEvent
    ) -> None:
        self._client = client
        self._key = key
        self._max_deliveries = max_deliveries
        self._attempts = Attempts(f"{member.stream} marks", on_event)
        self._taken_on: set[str] = set()
        self._perhaps_marked: set[str] = set()
        # A further try must not be marked before the one before it is unmarked.
        self._saying = anyio.Lock()

    @property
    def left(self) -> bool:
        """There is something for :meth:`forget` to do."""
        return bool(self._taken_on)

    async def begin(self, entry_id: str) -> str:
        """Say on the server that the handling of an entry begins.

        Returns:
            Why it must not begin any more; empty if it may.

        Raises:
            RedisError, OSError: it couldn't be said; the handling must not begin.
        """
        async with self._saying:
            more = 0 if entry_id in self._perhaps_marked else 1
            count = await self._add(entry_id, more)
        self._attempts.answered()
        if count < self._max_deliveries:
            return ""
        return f"its handling was begun {count} times and killed the process each time"

    def taken_on(self, entry_id: str) -> None:
        """The handler has taken an entry on without harm."""
        self._taken_on.add(entry_id)

    async def undo(self, entry_id: str) -> None:
        """What was begun has ended without harm, and will be begun again.

        Raises:
            RedisError, OSError: it couldn't be said; the next beginning isn't counted, instead.
        """
        async with self._saying:
            self._perhaps_marked.add(entry_id)
            if await self._add(entry_id, -1) <= 0:
                await self._client.hdel(self._key, entry_id)

    async def end(self, entry_id: str, *, taken_on: bool) -> None:
        """A try after the first is over; what can't be said now is with the next."""
        try:
            if taken_on:
                self.taken_on(entry_id)
                await self.forget()
            else:
                await self.undo(entry_id)
        except (RedisError, OSError) as error:
            self.failed(error)

    async def forget(self) -> None:
        """Unmark what was taken on; what can't be now is with the next.

        Raises:
            RedisError, OSError: it can't be now.
        """
        if self._taken_on:
            some = frozenset(self._taken_on)
            await self._client.hdel(self._key, *some)
            self._taken_on -= some

    def failed(self, error: RedisError | OSError) -> float:
        """A try after the first couldn't be marked; seconds to wait."""
        return self._attempts.failed(error)

    async def _add(self, entry_id: str, more: int) -> int:
        try:
            count: Any = await self._client.hincrby(self._key, entry_id, more)
        except ResponseError:
            raise
        except (RedisError, OSError):
            # Counted or not, it wasn't begun: one that isn't answered must not look like a killer.
            self._perhaps_marked.add(entry_id)
            raise
        self._perhaps_marked.discard(entry_id)
        return int(count)
