"""Another program that sends commands, and goes on through whatever happens to the server."""

from __future__ import annotations

from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tests.oona.bus import CONTROL, GROUP, UNSIGNED, command, send
from tolaria_bus.oona.sealing import seal

_PAUSE: Final = 0.008  # seconds between two commands
_LOST_PAUSE: Final = 0.05  # seconds after a lost connection


def number_of(command_id: str) -> int:
    """Commands are numbered in the order in which they were sent."""
    return int(command_id[1:])


class Sender:
    """Sends one command after the other, each with an id of its own, and never again.

    Args:
        redis: A client of its own.

    Attributes:
        count: Commands begun to be sent.
        sent: Ids of those that the server has confirmed.
        unsure: Ids of those on whose way the connection was lost: they may have arrived.
    """

    def __init__(self, redis: Redis) -> None:
        self.count = 0
        self.sent: list[str] = []
        self.unsure: set[str] = set()
        self._redis = redis
        self._stopped = False

    async def run(self) -> None:
        """Send until stopped."""
        while not self._stopped:
            command_id = f"c{self.count}"
            self.count += 1
            try:
                await send(self._redis, CONTROL, command(command_id), source="operator")
            except ResponseError:
                # Refused: it isn't there.
                pass
            except (RedisError, OSError):
                self.unsure.add(command_id)
                await anyio.sleep(_LOST_PAUSE)
            else:
                self.sent.append(command_id)
            await anyio.sleep(_PAUSE)

    async def send_to_a_read_that_is_gone(self, name: str) -> None:
        """Send one more; in the same step it is delivered to a consumer that never hears of it."""
        command_id = f"c{self.count}"
        self.count += 1
        sealed: Any = seal(command(command_id), stream=CONTROL, source="operator", ring=UNSIGNED)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(CONTROL, sealed)
            pipe.xreadgroup(GROUP, name, {CONTROL: ">"})
            await pipe.execute()
        self.sent.append(command_id)

    def stop(self) -> None:
        """Begin no further command."""
        self._stopped = True
