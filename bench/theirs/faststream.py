"""FastStream's side: a stream, and a subscriber in a consumer group.

Its access log, a line for each message, is off (``logger=None``).
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode

from faststream.redis import RedisBroker, StreamSub

from bench.theirs.serving import Task, serve

STREAM = "bench"
GROUP = "bench"
BATCH = 256
WORKERS = 64


async def publish(task: Task) -> float:
    """``broker.publish``, each awaited before the next."""
    async with RedisBroker(task.url, logger=None) as broker:
        start = time.perf_counter()
        for _ in range(task.messages):
            await broker.publish(task.body, stream=STREAM)
        return time.perf_counter() - start


async def publish_pipelined(task: Task) -> float:
    """``broker.publish`` into a pipeline: what it has for many at once on a stream."""
    async with RedisBroker(task.url, logger=None) as broker:
        start = time.perf_counter()
        await _publish_pipelined(broker, task.body, task.messages)
        return time.perf_counter() - start


async def consume(task: Task) -> float:
    """A subscriber as it is by default: one message after the other."""
    return await _consume(task, max_workers=1)


async def consume_concurrently(task: Task) -> float:
    """The same with ``max_workers``."""
    return await _consume(task, max_workers=WORKERS)


async def consume_batches(task: Task) -> float:
    """A batch subscriber: all that was read goes to one call, and is acknowledged by one command.

    It passes bodies through JSON, which has no place for a message's bytes: they are in base64.
    """
    broker = RedisBroker(task.url, logger=None)
    left = task.messages
    done = asyncio.Event()

    @broker.subscriber(
        stream=StreamSub(
            STREAM, group=GROUP, consumer="bench", last_id="0", max_records=BATCH, batch=True
        )
    )
    async def handle(bodies: list[str]) -> None:
        nonlocal left
        left -= len(bodies)
        if not left:
            done.set()

    async with broker:
        await _publish_pipelined(broker, b64encode(task.body).decode(), task.messages)
        return await _started_and_acknowledged(broker, done)


async def _consume(task: Task, max_workers: int) -> float:
    broker = RedisBroker(task.url, logger=None)
    left = task.messages
    done = asyncio.Event()

    @broker.subscriber(
        stream=StreamSub(STREAM, group=GROUP, consumer="bench", last_id="0", max_records=BATCH),
        max_workers=max_workers,
    )
    async def handle(body: bytes) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async with broker:
        await _publish_pipelined(broker, task.body, task.messages)
        return await _started_and_acknowledged(broker, done)


async def _publish_pipelined(broker: RedisBroker, body: bytes | str, messages: int) -> None:
    client = await broker.connect()
    for first in range(0, messages, BATCH):
        pipe = client.pipeline(transaction=False)
        for _ in range(min(BATCH, messages - first)):
            await broker.publish(body, stream=STREAM, pipeline=pipe)
        await pipe.execute()


async def _started_and_acknowledged(broker: RedisBroker, done: asyncio.Event) -> float:
    client = await broker.connect()
    start = time.perf_counter()
    await broker.start()
    await done.wait()
    while (await client.xpending(STREAM, GROUP))["pending"]:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    return time.perf_counter() - start


if __name__ == "__main__":
    serve(
        "faststream",
        {
            "publish": publish,
            "publish, pipelined": publish_pipelined,
            "consume": consume,
            "consume, concurrently": consume_concurrently,
            "consume, batches": consume_batches,
        },
    )
