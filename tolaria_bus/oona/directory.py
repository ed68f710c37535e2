"""Which runs there are, and how each one is: what workers write for everybody to find.

``oona:runs`` is a hash, run to JSON (host, start, last beat, and what else the worker says);
``oona:{RUN}:status`` a JSON object that the worker rewrites each second. Neither is needed by
anything that must be right: a beat is by its worker's clock, and whether a run has a worker is
told by its lease.

A run is entered as soon as its worker can be reached, before it has begun: its mode is then
``starting``, until the first beat. One that never came so far is no run that anybody could lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from tolaria_bus.oona.streams import RUN_ID, Streams

STARTING: Final = "starting"
"""Mode of a run that has been entered and has not begun."""


async def enter(client: Redis, streams: Streams, run: str, info: Mapping[str, Any]) -> bool:
    """Say that a run will be there; False if it is known already, and then nothing is changed.

    Raises redis-py's errors, and TypeError for what isn't JSON.
    """
    text = orjson.dumps({**info, "mode": STARTING})
    return bool(await client.hsetnx(streams.runs, run, text))


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
