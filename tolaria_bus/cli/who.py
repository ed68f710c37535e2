"""Who there is: runs that a server knows, those that somebody works on, and us."""

from __future__ import annotations

import getpass
import os
from typing import Any

from redis.asyncio import Redis

from tolaria_bus.oona.streams import RUN_ID, Streams


async def known_runs(client: Redis, streams: Streams) -> list[str]:
    """Ids of all runs that ever said they are there, sorted. Raises redis-py's errors."""
    keys: Any = await client.hkeys(streams.runs)
    names = (key.decode("utf-8", "replace") for key in keys)
    return sorted(name for name in names if RUN_ID.fullmatch(name))


async def live_runs(client: Redis, streams: Streams) -> list[str]:
    """Those whose lease is held, sorted. Raises redis-py's errors.

    The lease is asked, not the time of the last beat: that is by another machine's clock.
    """
    names = await known_runs(client, streams)
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.exists(streams.lease(name))
    held = await pipe.execute() if names else []
    return [name for name, count in zip(names, held, strict=True) if count]


def user_name() -> str:
    """Who is at the keyboard, as far as the system knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container's user often has no name.
        return f"uid-{os.getuid()}"
