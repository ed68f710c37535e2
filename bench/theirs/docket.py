"""Docket's side: a task for each message, and one worker."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from docket import Docket, Worker

from bench.theirs.serving import Task, serve

CONCURRENCY = 64
"""Its default is 10. Each takes a connection, and its client has 100 at most."""
CHECK_INTERVAL = timedelta(milliseconds=10)
"""For so long a worker sleeps when all are busy: by default 250 ms, which with 10 at once is 40
messages a second at most."""


async def publish(task: Task) -> float:
    """``docket.add``, each awaited before the next."""
    async with Docket("bench", task.url) as docket:
        start = time.perf_counter()
        for _ in range(task.messages):
            await docket.add(_nothing)(task.body)
        return time.perf_counter() - start


async def publish_many(task: Task) -> float:
    """``docket.add_many``, in chunks as by default."""
    async with Docket("bench", task.url) as docket:
        start = time.perf_counter()
        await docket.add_many(docket.call(_nothing)(task.body) for _ in range(task.messages))
        return time.perf_counter() - start


async def consume(task: Task) -> float:
    """A worker, until each task's entry is acknowledged and deleted."""
    left = task.messages
    done = asyncio.Event()

    async def handle(body: bytes) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async with (
        Docket("bench", task.url) as docket,
        Worker(docket, concurrency=CONCURRENCY, minimum_check_interval=CHECK_INTERVAL) as worker,
        docket.redis() as client,
    ):
        await docket.add_many(docket.call(handle)(task.body) for _ in range(task.messages))
        start = time.perf_counter()
        running = asyncio.create_task(worker.run_forever())
        await done.wait()
        while await client.xlen(docket.stream_key):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        seconds = time.perf_counter() - start
        running.cancel()
        await asyncio.wait([running])
        return seconds


async def _nothing(body: bytes) -> None:
    pass


if __name__ == "__main__":
    serve(
        "pydocket",
        {"publish": publish, "publish, many": publish_many, "consume": consume},
    )
