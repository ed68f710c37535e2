"""Marks of entries whose handling was begun, in a hash on the server; see ``consumer``."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError


class Marks:
    """What one consumer says about the entries that it begins.

    Args:
        client: Not the one that blocks.
        key: Of the hash: entry id, and how often its handling was begun.
    """

    def __init__(self, client: Redis, key: str) -> None:
        self._client = client
        self._key = key
        self._taken_on: set[str] = set()
        self._perhaps_marked: set[str] = set()

    async def begin(self, entry_id: str) -> int:
        """Say on the server that the handling of an entry begins; how often that was said.

        Raises:
            RedisError, OSError: it couldn't be said; the handling must not begin.
        """
        more = 0 if entry_id in self._perhaps_marked else 1
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

    def taken_on(self, entry_id: str) -> None:
        """The handler has taken an entry on without harm."""
        self._taken_on.add(entry_id)

    async def forget(self) -> None:
        """Unmark what was taken on; what can't be now is with the next.

        Raises:
            RedisError, OSError: it can't be now.
        """
        if self._taken_on:
            await self._client.hdel(self._key, *self._taken_on)
            self._taken_on.clear()
