"""The end of a consumer: others get what it doesn't finish, the server hears of what it has."""

from __future__ import annotations

from typing import Final

import anyio
from redis.exceptions import RedisError

from tolaria_bus.oona.events import OnEvent, reason_of
from tolaria_bus.oona.in_flight import InFlight
from tolaria_bus.oona.intake import Intake
from tolaria_bus.oona.reading import GroupReader

_LIMIT: Final = 2.0
"""Seconds that the server has for an answer."""


class Release:
    """Lets others have a consumer's entries.

    Events: ``release_failed`` and ``unacknowledged`` (stream, error): the server couldn't be told;
    ``unfinished`` (stream, entries): a stop didn't wait for them any longer.

    Args:
        stream: Key of the stream.
        reader: Its group's server side.
        in_flight: The entries that the consumer has.
        intake: Hands over no more.
        on_event: Told what happens.

    Attributes:
        done: What wasn't handed over has been released, or the server couldn't be told.
    """

    def __init__(
        self,
        stream: str,
        reader: GroupReader,
        in_flight: InFlight,
        intake: Intake,
        on_event: OnEvent,
    ) -> None:
        self.done = anyio.Event()
        self._stream = stream
        self._reader = reader
        self._in_flight = in_flight
        self._intake = intake
        self._on_event = on_event

    async def not_handed_over(self) -> None:
        """Let others have what was read and not handed over. Once."""
        if self.done.is_set():
            return
        self._intake.stop()
        self._intake.end()
        try:
            await self._try()
        finally:
            self.done.set()

    async def unfinished(self) -> None:
        """A stop has waited long enough: let others have what was handed over, too."""
        await self.not_handed_over()
        left = sorted(self._in_flight.ids())
        if left:
            self._on_event("unfinished", {"stream": self._stream, "entries": " ".join(left)})
            for entry_id in left:
                self._in_flight.remove(entry_id)
            await self._try()

    async def last_acknowledgements(self) -> None:
        """What was finished just now isn't to come again at the next start."""
        try:
            with anyio.move_on_after(_LIMIT):
                await self._in_flight.flush()
        except (RedisError, OSError) as error:
            detail = {"stream": self._stream, "error": reason_of(error)}
            self._on_event("unacknowledged", detail)

    async def _try(self) -> None:
        try:
            with anyio.move_on_after(_LIMIT):
                await self._in_flight.let_go_all()
                await self._reader.release(self._in_flight.kept())
        except (RedisError, OSError) as error:
            # They stay pending with us; the next to have our name begins with them.
            detail = {"stream": self._stream, "error": reason_of(error)}
            self._on_event("release_failed", detail)
