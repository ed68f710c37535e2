"""Publish: the outbox and its publisher, against raw pipelined redis-py on the same server."""

from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from datetime import timedelta

import anyio
from redis import Redis

from bench.harness import Result, compare, interleave
from bench.messages import telemetry
from bench.server import Place, server
from tolaria_bus.leyline import MessagePriority
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

ROUNDS = 7
MESSAGES = 20_000
STREAMS = Streams()
STREAM = STREAMS.telemetry("bench")
PIPELINE = 256
"""Of the baseline: larger ones are no faster."""
PAYLOAD_BYTES = 260
"""As our entries have."""
GOAL = ">= 25,000/s"


def run() -> Result:
    """Send many telemetry packets as fast as it goes."""
    result = Result("publish", f"{MESSAGES:,} packets to one stream, pipelines of {PIPELINE}")
    signed = KeyRing.parse(f"bench:{b64encode(os.urandom(32)).decode()}")
    with server() as place:

        def timed(work: Callable[[Place], Awaitable[float]]) -> Callable[[], float]:
            return lambda: anyio.run(
                work, place, backend="asyncio", backend_options={"use_uvloop": True}
            )

        rates = interleave(
            {
                "raw": lambda: _raw(place),
                "unsigned": timed(lambda place: ours(place, KeyRing())),
                "signed": timed(lambda place: ours(place, signed)),
            },
            ROUNDS,
        )
    for name in ("unsigned", "signed"):
        result.figures.append(
            compare(
                f"publish, {name}; baseline: XADD of ready bytes",
                rates[name],
                rates["raw"],
                "messages/s",
                goal=GOAL,
            )
        )
    return result


def _raw(place: Place) -> float:
    """The same number of bytes in one field, nothing made or checked on the way; no event loop."""
    payload = os.urandom(PAYLOAD_BYTES)
    with Redis.from_url(place.url) as client:
        client.delete(STREAM)
        start = time.perf_counter()
        for first in range(0, MESSAGES, PIPELINE):
            pipe = client.pipeline(transaction=False)
            for _ in range(min(PIPELINE, MESSAGES - first)):
                pipe.xadd(STREAM, {b"payload": payload}, maxlen=100_000, approximate=True)
            pipe.execute()
        return _rate(start)


async def ours(place: Place, ring: KeyRing, messages: int = MESSAGES) -> float:
    """Messages a second, from the first ``put`` to the last reply."""
    outbox = Outbox(4 * messages, None, STREAMS, "bench")
    packets = [telemetry(number) for number in range(messages)]
    async with (
        connect(place.url, name="bench-bulk") as bulk,
        connect(place.url, name="bench-emergency") as emergency,
        anyio.create_task_group() as tasks,
    ):
        await bulk.delete(STREAM)
        publisher = Publisher(bulk, emergency, outbox, ring)
        start = time.perf_counter()
        for packet in packets:
            outbox.put(packet, stream=STREAM, priority=MessagePriority.MESSAGE_PRIORITY_NORMAL)
        tasks.start_soon(publisher.run)
        left = await publisher.drain(timedelta(seconds=60))
        rate = _rate(start, messages)
        publisher.stop()
        if left or await bulk.xlen(STREAM) != messages:
            raise RuntimeError(f"{left} packets were not delivered")
    return rate


def _rate(start: float, messages: int = MESSAGES) -> float:
    return messages / (time.perf_counter() - start)
