"""Typed calls of the scripts that deal with dead letters once they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from redis.asyncio import Redis

from tolaria_bus.oona.scripts import Script

_REPLAY: Final = Script("replay")


async def replay(
    client: Redis, *, dead: str, letter_id: str, stream: str, fields: Mapping[bytes, bytes]
) -> str | None:
    """Add an entry to its stream and remove its dead letter, in one step.

    Args:
        client: Any client.
        dead: Key of the dead-letter stream.
        letter_id: The letter's entry there.
        stream: Where the entry goes; in the same slot.
        fields: The new entry.

    Returns:
        The new entry's id; ``None`` if the letter was gone, and nothing was done.

    Raises:
        RedisError: redis-py's; nothing is done then, or all of it.
    """
    pairs = [part for pair in fields.items() for part in pair]
    reply = await _REPLAY.run(client, [dead, stream], [letter_id, *pairs])
    return bytes(reply).decode() or None
