"""What is on the bus about a run, waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import anyio
from google.protobuf.message import Message
from redis.asyncio import Redis

from tests.oona.bus import UNSIGNED
from tolaria_bus.leyline import EmergencySignal, TelemetryEvent, TelemetryPacket
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.streams import Streams

STREAMS = Streams()
PATIENCE = 300  # seconds: a machine may be very busy

Found = TypeVar("Found")


async def messages(redis: Redis, stream: str) -> list[Message]:
    """All of a stream."""
    opener = Opener(UNSIGNED, None)
    entries: Any = await redis.xrange(stream)
    return [opener.open(stream, entry_id, fields).message for entry_id, fields in entries]


def events(found: list[Message], run: str, name: str) -> Iterator[TelemetryEvent]:
    """Those of one name about a run."""
    for message in found:
        if isinstance(message, TelemetryPacket) and message.training_run_id == run:
            yield from (event for event in message.events if event.event_id == name)


async def alerts(redis: Redis, run: str, name: str) -> list[TelemetryEvent]:
    """Those on the emergency stream."""
    return list(events(await messages(redis, STREAMS.emergency), run, name))


async def noted(redis: Redis, run: str, name: str) -> list[TelemetryEvent]:
    """Those in a run's telemetry."""
    return list(events(await messages(redis, STREAMS.telemetry(run)), run, name))


async def signals(redis: Redis) -> list[EmergencySignal]:
    """Those on the emergency stream."""
    found = await messages(redis, STREAMS.emergency)
    return [message for message in found if isinstance(message, EmergencySignal)]


async def wait_for(look: Callable[[], Any]) -> Any:
    """Until the look, which is awaited, finds something; then that."""
    with anyio.fail_after(PATIENCE):
        while not (found := await look()):  # noqa: ASYNC110 - a stream is polled
            await anyio.sleep(0.05)
        return found
