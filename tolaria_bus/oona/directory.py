"""Which runs there are, and how each one is: what workers write for everybody to find.

``oona:runs`` is a hash, run to JSON (host, start, last beat, and what else the worker says);
``oona:{RUN}:status`` a JSON object that the worker rewrites each second. Neither is needed by
anything that must be right: a beat is by its worker's clock, and whether a run has a worker is
told by its lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from redis.asyncio import Redis

from tolaria_bus.oona.streams import RUN_ID, Streams


async def beat(client: Redis, streams: Streams, run: str, info: Mapping[str, Any]) -> None:
    """Say that a run is there. Raises redis-py's errors, and TypeError for what isn't JSON."""
    await client.hset(streams.runs, run, orjson.dumps(dict(info)))


async def write_status(
    client: Redis, streams: Streams, run: str, status: Mapping[str, Any]
) -> None:
    """Say how a run is. Raises redis-py's errors, and TypeError for what isn't JSON."""
    await client.set(streams.status(run), orjson.dumps(dict(status)))


async def runs(client: Redis, streams: Streams) -> dict[str, dict[str, Any]]:
    """Every run that was ever there, by its id, sorted, with what it last said.

    Entries that can't be read are left out: anybody can write to the hash. Raises redis-py's
    errors.
    """
    found: Any = await client.hgetall(streams.runs)
    readable: dict[str, dict[str, Any]] = {}
    for key, value in sorted(found.items()):
        run, info = key.decode("utf-8", "replace"), _object(value)
        if RUN_ID.fullmatch(run) and info is not None:
            readable[run] = info
    return readable


async def status(client: Redis, streams: Streams, run: str) -> dict[str, Any] | None:
    """How a run is; ``None`` if nobody ever said, or it can't be read. Raises redis-py's errors."""
    found: Any = await client.get(streams.status(run))
    return None if found is None else _object(found)


async def forget(client: Redis, streams: Streams, run: str) -> bool:
    """Take a run out of the directory; was it there? Its streams stay. Raises redis-py's errors."""
    removed = await client.hdel(streams.runs, run)
    await client.delete(streams.status(run))
    return bool(removed)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
