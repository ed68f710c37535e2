"""A worker's groups: where they begin, what they hold, and who looks after the streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
from redis.asyncio import Redis

from tests.oona.bus import CONTROL, EMERGENCY, RUN, SOON, STREAMS, command, send
from tests.recovery.records import started
from tolaria_bus.oona.streams import groups_of
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.settings import load
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.worker.bus import Bus

FLEET = STREAMS.fleet_control


@asynccontextmanager
async def worker(url: str, path: Path) -> AsyncIterator[Mailbox]:
    """The bus side of a worker that begins its training."""
    settings, _ = load()
    folder = RunFolder.open(path)
    mailbox = Mailbox()
    try:
        async with Bus(url, RUN, folder, settings, KeyRing(), mailbox) as bus:
            folder.write(started())
            yield mailbox
            await bus.drain(timedelta(seconds=SOON))
    finally:
        folder.journal.close()


async def deliveries(mailbox: Mailbox, count: int) -> list[str]:
    """Command ids that came, in any order."""
    found: list[Delivery] = []
    with anyio.fail_after(SOON):
        while len(found) < count:
            await anyio.to_thread.run_sync(mailbox.wait, 0.05)
            found += mailbox.take()
    return sorted(delivery.command.command_id for delivery in found)


async def test_a_new_run_gets_its_own_commands_from_before_and_none_of_the_fleets(
    redis: Redis, redis_url: str, tmp_path: Path
):
    await send(redis, CONTROL, command("own"))
    await send(redis, FLEET, command("old"))
    async with worker(redis_url, tmp_path) as mailbox:
        await send(redis, FLEET, command("new"))
        assert await deliveries(mailbox, 2) == ["new", "own"]


async def test_a_worker_that_was_away_gets_what_the_fleet_was_told(
    redis: Redis, redis_url: str, tmp_path: Path
):
    async with worker(redis_url, tmp_path):
        pass
    await send(redis, FLEET, command("meanwhile"))
    async with worker(redis_url, tmp_path) as mailbox:
        assert await deliveries(mailbox, 1) == ["meanwhile"]


async def test_after_a_wipe_while_it_was_away_all_its_groups_begin_at_the_beginning(
    redis: Redis, redis_url: str, tmp_path: Path
):
    async with worker(redis_url, tmp_path):
        pass
    await redis.flushall()
    await send(redis, CONTROL, command("own"))
    await send(redis, FLEET, command("fleet"))
    async with worker(redis_url, tmp_path) as mailbox:
        assert await deliveries(mailbox, 2) == ["fleet", "own"]


async def test_a_worker_shows_that_its_groups_live_and_trims_its_streams(
    redis: Redis, redis_url: str, tmp_path: Path
):
    state = STREAMS.state(RUN)
    await redis.xadd(state, {"payload": b"x"}, id="1-1")
    async with worker(redis_url, tmp_path):
        known: dict[str, Any] = {}
        with anyio.fail_after(SOON):
            while len(known) < 4:
                for stream in (CONTROL, FLEET, EMERGENCY, state):
                    if b"swept" in (found := await redis.hgetall(groups_of(stream))):
                        known[stream] = found
                await anyio.sleep(0.01)
    assert b"lease:tolaria" in known[CONTROL]
    assert f"lease:tolaria.{RUN}".encode() in known[FLEET]
    assert f"lease:tolaria.{RUN}".encode() in known[EMERGENCY]
    assert await redis.xlen(state) == 0


async def test_a_worker_that_leaves_without_a_drain_leaves_no_connection_behind(
    redis: Redis, redis_url: str, tmp_path: Path
):
    settings, _ = load()
    folder = RunFolder.open(tmp_path)
    async with Bus(redis_url, RUN, folder, settings, KeyRing(), Mailbox()):
        pass
    folder.journal.close()
    with anyio.fail_after(SOON):
        while [one for one in await redis.client_list() if one["name"].startswith("tolaria")]:  # noqa: ASYNC110
            await anyio.sleep(0.01)
