"""How much a dead-letter stream may hold: whoever sends rubbish doesn't fill the server with it.

The length that a stream is cut to says nothing of its size, for a letter holds its entry, up to a
mebibyte. So whoever writes letters asks the server now and then how large the stream has become,
and above the limit the oldest go. It costs the server some milliseconds for 100,000 letters, which
is why it isn't asked each time; between two times each writer adds ``_EVERY`` bytes at most.
"""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tolaria_bus.oona.events import OnEvent, reason_of

LETTER_BYTES: Final = 256 << 20
"""Of one dead-letter stream, as it is in the server's memory."""

_EVERY: Final = 16 << 20
"""Bytes of letters between two questions."""
_ROOM: Final = 0.9
"""What is cut is cut to this share of the limit."""


class LetterLimit:
    """Cuts one dead-letter stream.

    Events: ``letters_cut`` (stream, letters, bytes): the oldest letters went, and so many bytes are
    left; ``letters_unlimited`` (stream, error): the server doesn't tell us how large it is.

    Args:
        client: Not one that blocks.
        dead: Key of the dead-letter stream.
        on_event: Told.

    Attributes:
        most: Bytes that it may have.
        every: Bytes of letters between two questions.
    """

    def __init__(self, client: Redis, dead: str, on_event: OnEvent) -> None:
        self.most = LETTER_BYTES
        self.every = _EVERY
        self._client = client
        self._dead = dead
        self._on_event = on_event
        # What others have left there isn't known: the first letter asks.
        self._written: float = float("inf")
        self._refused = False

    async def wrote(self, size: int) -> None:
        """A letter of ``size`` bytes was written.

        What keeps the server from being asked is no reason to give up a letter that is written: the
        next one asks again, and meets the same trouble where it is told of.
        """
        self._written += size
        if self._written < self.every or self._refused:
            return
        try:
            await self._cut()
        except ResponseError as error:
            self._refused = True
            detail = {"stream": self._dead, "error": reason_of(error)}
            self._on_event("letters_unlimited", detail)
        except (RedisError, OSError):
            return
        self._written = 0

    async def _cut(self) -> None:
        cut = 0
        while (held := await self._bytes()) > self.most:
            length = await self._client.xlen(self._dead)
            if length <= 1:
                break
            too_many = max(1, int(length * (1 - _ROOM * self.most / held)))
            cut += await self._client.xtrim(self._dead, maxlen=length - too_many, approximate=False)
        if cut:
            detail = {"stream": self._dead, "letters": str(cut), "bytes": str(held)}
            self._on_event("letters_cut", detail)

    async def _bytes(self) -> int:
        # Of all parts of the stream: a sample of them would be of its oldest ones.
        return int(await self._client.memory_usage(self._dead, samples=0) or 0)
