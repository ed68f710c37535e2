"""A run has one worker, and an older one can't come back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import SOON, STREAMS, Events
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.oona.lease import Lease, LeaseHeld, fence_key

LONG = timedelta(seconds=60)
SHORT = timedelta(milliseconds=150)
KEY = STREAMS.lease("r")


def lease(redis: Redis, holder: str, token: int, ttl: timedelta = LONG, **hooks: Any) -> Lease:
    return Lease(redis, STREAMS, "r", holder, token, ttl, **hooks)


@asynccontextmanager
async def kept(held: Lease) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(held.keep)
        yield
        tasks.cancel_scope.cancel()


async def lapsed(redis: Redis) -> None:
    await redis.delete(KEY)


async def test_a_held_run_is_refused_with_its_holder_and_since_when(redis: Redis):
    await lease(redis, "one", 1).acquire()
    with pytest.raises(LeaseHeld, match=r"run 'r' is held by one since 20\d\d-") as refused:
        await lease(redis, "two", 2).acquire()
    assert refused.value.holder == "one"


async def test_a_released_run_is_free_for_the_next(redis: Redis):
    first = lease(redis, "one", 1)
    await first.acquire()
    assert await first.release()
    assert not await redis.exists(KEY)
    await lease(redis, "two", 2).acquire()
    assert not await first.release()
    assert await redis.exists(KEY)


async def test_the_same_holder_gets_it_back_at_once_after_a_crash(redis: Redis):
    await lease(redis, "host:folder", 1).acquire()
    await lease(redis, "host:folder", 2).acquire()
    assert await redis.hget(KEY, "token") == b"2"
    with pytest.raises(LeaseHeld):
        await lease(redis, "host:folder", 1).acquire()


async def test_a_lease_that_is_not_renewed_lapses(redis: Redis):
    await lease(redis, "one", 1, SHORT).acquire()
    second = lease(redis, "two", 2)
    with anyio.fail_after(SOON):
        while not second.held:
            try:
                await second.acquire()
            except LeaseHeld:
                await anyio.sleep(0.02)


async def test_a_lease_that_is_kept_stays(redis: Redis):
    held = lease(redis, "one", 1)
    assert held._every == LONG.total_seconds() / 3
    # Renewed as often as one of 60 ms would be, which a busy machine could let lapse.
    held._every = 0.02
    await held.acquire()
    since = await redis.hget(KEY, "since")
    async with kept(held):
        for _ in range(10):
            await redis.pexpire(KEY, LONG / 2)
            with anyio.fail_after(SOON):
                while await redis.pttl(KEY) <= LONG / 2 / timedelta(milliseconds=1):  # noqa: ASYNC110
                    await anyio.sleep(0.002)
    assert await redis.hget(KEY, "since") == since


async def test_an_older_worker_cannot_come_back_after_a_newer_one(redis: Redis):
    newer = lease(redis, "two", 2)
    await newer.acquire()
    await newer.release()
    with pytest.raises(LeaseHeld, match=r"was continued by two at .*, from a newer journal"):
        await lease(redis, "one", 1).acquire()


async def test_a_run_begun_anew_starts_over(redis: Redis):
    newer = lease(redis, "two", 7)
    await newer.acquire()
    with pytest.raises(LeaseHeld):
        await lease(redis, "one", 1).acquire(fresh=True)
    await newer.release()
    await lease(redis, "one", 1).acquire(fresh=True)
    assert await redis.hget(fence_key(STREAMS, "r"), "token") == b"1"


async def test_a_worker_that_slept_through_its_lease_is_told_that_it_lost_the_run(redis: Redis):
    told, events = list[str](), Events()
    older = lease(redis, "one", 1, SHORT, on_lost=told.append, on_event=events)
    await older.acquire()
    await lapsed(redis)
    newer = lease(redis, "two", 2)
    await newer.acquire()
    with anyio.fail_after(SOON):
        await older.keep()
    assert told == ["two has the run now"]
    assert events.names() == ["lease_lost"]
    assert not older.held
    assert await redis.hget(KEY, "holder") == b"two"
    # Also when the newer one has finished meanwhile.
    await newer.release()
    older.held = True
    with anyio.fail_after(SOON):
        await older.keep()
    assert len(told) == 2
    assert not await redis.exists(KEY)


async def test_a_wiped_lease_is_taken_again(redis: Redis):
    events = Events()
    held = lease(redis, "one", 1, SHORT, on_event=events)
    await held.acquire()
    async with kept(held):
        await redis.flushall()
        assert await events.wait_for("lease_reacquired") == {"run": "r"}
    assert await redis.hget(KEY, "holder") == b"one"


async def test_after_a_wipe_the_higher_token_wins_whoever_comes_first(redis: Redis):
    told, events = list[str](), Events()
    newer = lease(redis, "two", 2, SHORT, on_event=events)
    await newer.acquire()
    await redis.flushall()
    older = lease(redis, "one", 1, SHORT, on_lost=told.append, on_event=Events())
    await older.acquire()
    async with kept(newer):
        await events.wait_for("lease_reacquired")
        with anyio.fail_after(SOON):
            await older.keep()
    assert told == ["two has the run now"]


async def test_a_released_lease_is_renewed_no_more(redis: Redis):
    held = lease(redis, "one", 1, SHORT)
    await held.acquire()
    await held.release()
    with anyio.fail_after(SOON):
        await held.keep()
    assert not await redis.exists(KEY)


@pytest.mark.usefixtures("state_home")
async def test_an_outage_doesnt_end_a_lease(tmp_path: Path):
    events = Events()
    server = EmbeddedServer.start(tmp_path, "r")
    async with connect(server.url, name="lease") as client:
        held = lease(client, "one", 1, SHORT, on_event=events)
        await held.acquire()
        async with kept(held):
            server.stop()
            await events.wait_for("lease_unrenewed")
            with EmbeddedServer.start(tmp_path, "r"), anyio.fail_after(SOON):
                while await client.pttl(KEY) < 0:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
                assert await client.hget(KEY, "holder") == b"one"
                await events.wait_for("lease_renewed")
                assert events.names().count("lease_unrenewed") == 1
    assert held.held
