"""One word for a connection that is gone, whatever the event loop calls it.

Writing to a transport that the other side has just closed is an ``OSError`` to asyncio, which
redis-py turns into its ``ConnectionError``. To uvloop it is a ``RuntimeError``, which redis-py lets
through: whoever waits for lost connections would die of one that was lost at that moment.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost


def lost_when_closed(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """A class of connections like ``kind``, to which a closed transport is a lost connection."""

    class LostWhenClosed(kind):  # type: ignore[misc, valid-type]
        async def send_packed_command(self, *command: Any, **how: Any) -> None:
            try:
                await super().send_packed_command(*command, **how)
            except RuntimeError as error:
                # redis-py has closed its side by now.
                raise ConnectionLost(f"Connection closed while writing to it. {error}") from error

    return LostWhenClosed
