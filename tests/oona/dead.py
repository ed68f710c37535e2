"""Dead letters as consumers leave them, and what is done to them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from redis.asyncio import Redis

from tests.oona.bus import CONTROL, GROUP, STREAMS, UNSIGNED, command
from tolaria_bus.oona.dead_letters import build, bury
from tolaria_bus.oona.examining import Examiner
from tolaria_bus.oona.letters import Found, LetterBox
from tolaria_bus.oona.replay import Result, purge, replay
from tolaria_bus.oona.resealing import Resealer, Terms
from tolaria_bus.oona.scripts import Entry
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.streams import dead_letters_of
from tolaria_bus.oona.tracing import Tracer
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.oona.where import Where

RING = KeyRing.parse("k:c2VjcmV0LXNlY3JldA==")
OTHER = KeyRing.parse("o:b3RoZXItc2VjcmV0ISE=")
BOTH = KeyRing.parse("k:c2VjcmV0LXNlY3JldA==,o:b3RoZXItc2VjcmV0ISE=")
DEAD = STREAMS.dead("r")
ANN = "operator/ann"


def an_hour_ago() -> int:
    return time.time_ns() - 3_600_000_000_000


def sealed(
    message: Any = None, ring: KeyRing = RING, stream: str = CONTROL, **options: Any
) -> dict[Any, Any]:
    options = {"source": "operator/bob", **options}
    return dict(seal(message or command(), stream=stream, ring=ring, **options))


async def dead_entry(
    redis: Redis,
    fields: Mapping[Any, Any],
    reason: str = "malformed",
    *,
    stream: str = CONTROL,
    ring: KeyRing = UNSIGNED,
) -> str:
    """Give an entry up as a consumer does; the entry's id."""
    entry_id: Any = await redis.xadd(stream, dict(fields))
    added: Any = await redis.xrange(stream, entry_id, entry_id)
    raw = dict(added[0][1])
    letter = build(
        Entry(stream, GROUP, entry_id.decode()), reason, "it is", raw, consumer="me", deliveries=1
    )
    assert await bury(redis, letter, ring=ring, delete=stream == CONTROL)
    return str(entry_id.decode())


def box(redis: Redis, ring: KeyRing = UNSIGNED, dead: str = DEAD) -> LetterBox:
    return LetterBox(redis, dead, Examiner(ring))


async def found(
    redis: Redis, ring: KeyRing = UNSIGNED, *where: str, dead: str = DEAD
) -> list[Found]:
    return [item async for item in box(redis, ring, dead).all(Where.parse(where))]


async def each(items: Iterable[Found]) -> AsyncIterator[Found]:
    for item in items:
        yield item


async def replayed(
    redis: Redis,
    ring: KeyRing = UNSIGNED,
    *where: str,
    stream: str = CONTROL,
    dry_run: bool = False,
    clock: Callable[[], int] = time.time_ns,
    **terms: Any,
) -> list[Result]:
    """Replay the letters of a stream's slot."""
    dead = dead_letters_of(stream)
    letters = box(redis, ring, dead).all(Where.parse(where))
    resealer = Resealer(ring, Terms(ANN, **terms), clock)
    tracer = Tracer(redis, STREAMS, dead, ANN, ring)
    return [item async for item in replay(redis, letters, resealer, tracer, dry_run=dry_run)]


async def purged(
    redis: Redis, ring: KeyRing = UNSIGNED, *where: str, dry_run: bool = False, dead: str = DEAD
) -> list[Result]:
    letters = box(redis, ring, dead).all(Where.parse(where))
    tracer = Tracer(redis, STREAMS, dead, ANN, ring)
    return [item async for item in purge(redis, letters, tracer, dry_run=dry_run)]


async def everything(redis: Redis) -> dict[bytes, bytes]:
    """All that the server holds."""
    keys: Any = await redis.keys("*")
    return {key: await redis.dump(key) or b"" for key in sorted(keys)}
