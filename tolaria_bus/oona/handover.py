"""Handing entries to the handler, and again if it fails.

Entries go to the handler one after the other. One that it fails on is tried again with a growing
wait, while others go on; but those of the same source wait behind it, so that what one source
sends keeps its order. Past its tries an entry becomes a dead letter.

A try after the first may kill as well as the first: see ``marks``. Whoever hands an entry over has
marked it for the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup
from redis.exceptions import RedisError

from tolaria_bus.oona.backoff import Backoff
from tolaria_bus.oona.events import OnEvent, reason_of
from tolaria_bus.oona.marks import Marks
from tolaria_bus.oona.received import Received

Handler = Callable[[Received], Awaitable[None]]
"""Takes an entry on and returns; whoever finishes the work finishes the entry."""

TRIES: Final = 5
"""Times that a failing handler gets an entry."""

_WAITS: Final = (0.1, 0.3, 1.0, 3.0)  # seconds


class Handover:
    """Between the reader and the handler.

    Events: ``handler_failed`` (stream, entry_id, error).

    Args:
        handler: Gets the entries.
        tasks: Where entries that failed wait.
        marks: Of entries that were begun.
        tries: How often.
        on_event: Told of failures.
        waits: Seconds between the tries.
    """

    def __init__(
        self,
        handler: Handler,
        tasks: TaskGroup,
        marks: Marks,
        *,
        tries: int,
        on_event: OnEvent,
        waits: tuple[float, ...] = _WAITS,
    ) -> None:
        self._handler = handler
        self._tasks = tasks
        self._marks = marks
        self._tries = tries
        self._on_event = on_event
        self._waits = waits
        self._behind: dict[str, deque[Received]] = {}
        self._stopped = anyio.Event()

    async def hand(self, received: Received) -> bool:
        """Give an entry to the handler; if it fails, again later: was it taken off our hands?"""
        if self._behind and received.opened.source in self._behind:
            self._behind[received.opened.source].append(received)
            return False
        try:
            await self._handler(received)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises
            if not await self._failed(received, error):
                source = received.opened.source
                self._behind[source] = deque([received])
                self._tasks.start_soon(self._retry, source)
                return False
        return True

    def stop(self) -> None:
        """Begin no further try."""
        self._stopped.set()

    def left(self) -> list[Received]:
        """Entries that wait for a try."""
        return [received for queue in self._behind.values() for received in queue]

    async def _retry(self, source: str) -> None:
        queue = self._behind[source]
        backoff = Backoff(self._waits)
        while queue:
            if queue[0].failures:
                with anyio.move_on_after(backoff.next()):
                    await self._stopped.wait()
            if self._stopped.is_set():
                return
            if await self._try(queue[0]):
                queue.popleft()
                backoff.reset()
        del self._behind[source]

    async def _try(self, received: Received) -> bool:
        """One more try; is the entry off our hands?"""
        if not received.redelivered:
            return await self._call(received)
        try:
            why = await self._marks.begin(received.entry_id)
        except (RedisError, OSError) as error:
            with anyio.move_on_after(self._marks.failed(error)):
                await self._stopped.wait()
            return False
        if why:
            await received.dead_letter("fatal", why)
            return True
        taken = await self._call(received)
        await self._marks.end(received.entry_id, taken_on=taken)
        return taken

    async def _call(self, received: Received) -> bool:
        try:
            await self._handler(received)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises
            return await self._failed(received, error)
        return True

    async def _failed(self, received: Received, error: Exception) -> bool:
        """The handler failed on an entry; was that its last try?"""
        received.failures += 1
        self._on_event(
            "handler_failed",
            {
                "stream": received.stream,
                "entry_id": received.entry_id,
                "error": reason_of(error),
            },
        )
        if received.failures < self._tries:
            return False
        text = f"the handler failed {received.failures} times, at last with {reason_of(error)}"
        await received.dead_letter("handler", text)
        return True
