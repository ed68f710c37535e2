"""Consume: verify, parse, hand over, acknowledge, delete, against raw pipelined redis-py."""

from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
from redis import Redis

from bench.harness import Result, compare, interleave
from bench.messages import telemetry
from bench.server import Place, server
from tolaria_bus.leyline import BusMessageType
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.consumer import Consumer, Received
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing, NonceWindow

ROUNDS = 5
MESSAGES = 30_000
BATCH = 256
STREAM = Streams().control("bench")
GROUP = "tolaria"


def run() -> Result:
    """Empty a stream as fast as it goes."""
    result = Result("consume", f"{MESSAGES:,} entries of one stream, reads of {BATCH}")
    signed = KeyRing.parse(f"bench:{b64encode(os.urandom(32)).decode()}")
    with server() as place:

        def timed(ring: KeyRing) -> Callable[[], float]:
            return lambda: anyio.run(
                ours, place, ring, backend="asyncio", backend_options={"use_uvloop": True}
            )

        rates = interleave(
            {"raw": lambda: _raw(place), "unsigned": timed(KeyRing()), "signed": timed(signed)},
            ROUNDS,
        )
    for name in ("unsigned", "signed"):
        result.figures.append(
            compare(
                f"consume, {name}; baseline: XREADGROUP, XACK, XDEL pipelined",
                rates[name],
                rates["raw"],
                "messages/s",
            )
        )
    return result


def _fill(place: Place, ring: KeyRing, messages: int = MESSAGES) -> None:
    with Redis.from_url(place.url) as client:
        client.delete(STREAM)
        client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        for first in range(0, messages, BATCH):
            pipe = client.pipeline(transaction=False)
            for number in range(first, min(first + BATCH, messages)):
                fields: Any = seal(telemetry(number), stream=STREAM, source="bench", ring=ring)
                pipe.xadd(STREAM, fields)
            pipe.execute()


def _raw(place: Place) -> float:
    _fill(place, KeyRing())
    left = MESSAGES
    with Redis.from_url(place.url) as client:
        start = time.perf_counter()
        while left:
            reply: Any = client.xreadgroup(GROUP, "bench", {STREAM: ">"}, count=BATCH)
            ids = [entry_id for entry_id, _ in reply[0][1]]
            pipe = client.pipeline(transaction=False)
            pipe.xack(STREAM, GROUP, *ids)
            pipe.xdel(STREAM, *ids)
            pipe.execute()
            left -= len(ids)
        return MESSAGES / (time.perf_counter() - start)


async def ours(place: Place, ring: KeyRing, messages: int = MESSAGES) -> float:
    """Messages a second, from the first read to the last acknowledgement."""
    _fill(place, ring, messages)
    block = timedelta(seconds=1)
    async with (
        connect(place.url, name="bench-reader", block=block) as client,
        connect(place.url, name="bench-acks") as acks,
        anyio.create_task_group() as tasks,
    ):
        consumer = Consumer(
            client,
            acks,
            stream=STREAM,
            group=GROUP,
            name="bench",
            opener=Opener(ring, NonceWindow()),
            ring=ring,
            accept={BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY},
            delete=True,
            block=block,
        )

        async def handle(received: Received) -> None:
            received.ack_soon()

        start = time.perf_counter()
        tasks.start_soon(consumer.run, handle)
        while consumer.in_flight.acknowledged < messages:  # noqa: ASYNC110
            await anyio.sleep(0.001)
        rate = messages / (time.perf_counter() - start)
        await consumer.stop()
        tasks.cancel_scope.cancel()
    return rate
