"""A worker goes on knowing what time it is on its server."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import SOON, Events, until
from tests.oona.faults.own_server import OwnServer
from tests.worker.test_drain import bus
from tolaria_bus.oona.connection import ServerClock, connect
from tolaria_bus.tolaria.control.mailbox import Mailbox
from tolaria_bus.worker.clock import ClockKeeper

HOUR = 3600.0
NEVER = timedelta(hours=1)


class Counter:
    """Seconds that this machine counts, and what it missed of the server's."""

    missed = 0.0

    def __call__(self) -> float:
        return time.monotonic() - self.missed


async def wrong_clock(redis: Redis) -> ServerClock:
    """One that was right, until the server's was put forward by an hour."""
    counter = Counter()
    clock = ServerClock(monotonic=counter)
    await clock.sync(redis)
    counter.missed = HOUR
    assert not right(clock)
    return clock


def right(clock: ServerClock) -> bool:
    """Is it about what the server says? That is on this machine."""
    now = clock.now()
    return now is not None and abs(now - time.time()) < HOUR / 2


@pytest.mark.parametrize("every", [timedelta(milliseconds=1), NEVER])
async def test_the_clock_is_right_again_in_time_and_when_somebody_asks(
    redis: Redis, every: timedelta
):
    clock = await wrong_clock(redis)
    keeper = ClockKeeper(clock, redis, every=every, on_event=Events())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        if every == NEVER:
            keeper.ask()
        await until(lambda: right(clock))
        tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("state_home")
async def test_a_clock_that_cant_be_asked_is_told_once_and_asked_again(tmp_path: Path):
    server = OwnServer(tmp_path)
    events = Events()
    try:
        async with connect(server.url, name="test") as redis, anyio.create_task_group() as tasks:
            clock = await wrong_clock(redis)
            server.kill()
            keeper = ClockKeeper(clock, redis, every=NEVER, on_event=events)
            keeper.ask()
            tasks.start_soon(keeper.run)
            assert (await events.wait_for("disconnected"))["connection"] == "clock"
            server.start()
            await events.wait_for("reconnected")
            assert right(clock)
            assert events.names() == ["disconnected", "reconnected"]
            tasks.cancel_scope.cancel()
    finally:
        server.stop()


async def test_a_worker_asks_for_the_time_when_a_connection_came_back(
    redis: Redis, redis_url: str, tmp_path: Path
):
    async with bus(redis_url, tmp_path, Mailbox()) as made, redis.monitor() as seen:
        clients: Any = await redis.client_list()
        for client in clients:
            if client["name"] == "tolaria-reader":
                await redis.client_kill_filter(_id=client["id"])
        with anyio.fail_after(SOON):
            async for command in seen.listen():
                if command["command"] == "TIME" and command["client_type"] != "lua":
                    break
        await made.drain(timedelta(seconds=SOON))
