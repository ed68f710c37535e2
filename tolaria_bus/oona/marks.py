"""Marks of entries whose handling was begun, in a hash on the server; see ``consumer``.

A mark is set before the handler gets an entry. Where the handler takes it on, the mark goes, with
all that were left by processes that died. Where it fails, or the entry only has to wait behind
another, this one mark is taken back, and those of the dead stay.

A server that is out of memory can't take a mark. The entry is begun all the same: to handle it is
what frees memory, and a PAUSE or STOP may wait behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.events import OnEvent, reason_of
from tolaria_bus.oona.reading import Member

_NO_ENTRY: Final = "-"


class Marks:
    """What one consumer says about the entries that it begins.

    Events: those of :class:`Attempts`, for the server without memory and for tries after the first.

    Args:
        client: Not the one that blocks.
        member: Which consumer.
        key: Of the hash: entry id, and how often its handling was begun.
        max_deliveries: How often an entry may kill its process.
        on_event: Told of troubles.
        monotonic: Seconds.
    """

    def __init__(
        self,
        client: Redis,
        member: Member,
        key: str,
        max_deliveries: int,
        on_event: OnEvent,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._key = key
        self._max_deliveries = max_deliveries
        self._attempts = Attempts(f"{member.stream} marks", on_event)
        self._monotonic = monotonic
        self._taken_on: set[str] = set()
        # Begun without a mark. When to ask again whether the server has memory; ``None``: it has.
        self._unmarked: set[str] = set()
        self._ask_at: float | None = None
        self._perhaps_marked: set[str] = set()
        # A further try must not be marked before the one before it is unmarked.
        self._saying = anyio.Lock()

    @property
    def left(self) -> bool:
        """There is something for :meth:`forget` to do."""
        return bool(self._taken_on) or (
            self._ask_at is not None and self._monotonic() >= self._ask_at
        )

    async def begin(self, entry_id: str) -> str:
        """Say on the server that the handling of an entry begins.

        Returns:
            Why it must not begin any more; empty if it may.

        Raises:
            RedisError, OSError: it couldn't be said; the handling must not begin.
        """
        async with self._saying:
            more = 0 if entry_id in self._perhaps_marked else 1
            try:
                count = await self._add(entry_id, more)
            except OutOfMemoryError as error:
                self._refused(error)
                before: Any = await self._client.hget(self._key, entry_id)
                count = int(before or 0) + more
                if count < self._max_deliveries:
                    self._unmarked.add(entry_id)
            else:
                self._accepted()
        if count < self._max_deliveries:
            return ""
        return f"its handling was begun {count} times and killed the process each time"

    def taken_on(self, entry_id: str) -> None:
        """The handler has taken an entry on without harm."""
        self._unmarked.discard(entry_id)
        self._taken_on.add(entry_id)

    async def undo(self, entry_id: str) -> None:
        """What was begun has ended without harm, and will be begun again.

        Raises:
            RedisError, OSError: it couldn't be said; the next beginning isn't counted, instead.
        """
        if entry_id in self._unmarked:
            self._unmarked.discard(entry_id)
            return
        async with self._saying:
            self._perhaps_marked.add(entry_id)
            try:
                left = await self._add(entry_id, -1)
            except OutOfMemoryError as error:
                self._refused(error)
                return
            if left <= 0:
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
        if self._ask_at is not None and self._monotonic() >= self._ask_at:
            await self._ask()

    def failed(self, error: RedisError | OSError) -> float:
        """A try after the first couldn't be marked; seconds to wait."""
        return self._attempts.failed(error)

    async def _ask(self) -> None:
        """Does the server have memory again? Perhaps no entry comes that would show it."""
        try:
            await self._client.hincrby(self._key, _NO_ENTRY, 0)
            await self._client.hdel(self._key, _NO_ENTRY)
        except OutOfMemoryError as error:
            self._refused(error)
        else:
            self._accepted()

    def _refused(self, error: OutOfMemoryError) -> None:
        self._ask_at = self._monotonic() + self._attempts.answered({reason_of(error): 1})

    def _accepted(self) -> None:
        self._ask_at = None
        self._attempts.answered()

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
