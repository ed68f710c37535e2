"""A master that dies, hangs or is put out of office, and another that takes its place."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    HIGH,
    SOON,
    Events,
    Inbox,
    alert,
    command,
    consuming,
    drained,
    envelopes,
    finished,
    new_outbox,
    publishing,
    send,
)
from tests.oona.topologies.conftest import wipe
from tests.oona.topologies.places import SERVICE, Failover
from tests.oona.topologies.processes import SentinelServer, Server, eventually
from tolaria_bus.oona.connection import ServerUnreachable, check, connect
from tolaria_bus.oona.copies import Copies
from tolaria_bus.oona.spool import Spool


@pytest.fixture
async def redis_url(failover: Failover) -> str:
    failover.wait_until_whole()
    await wipe(failover.url)
    return failover.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with connect(redis_url, name="tests") as client:
        yield client


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as made:
        yield made


async def sent(redis: Redis, command_id: str) -> None:
    """Send a command as an operator does, who tries again."""
    with anyio.fail_after(SOON):
        while True:
            try:
                await send(redis, CONTROL, command(command_id))
            except (RedisError, OSError):
                await anyio.sleep(0.1)
            else:
                return


async def put_out_of_office(failover: Failover) -> None:
    """Have the replica made the master, and the master its replica; asked again if given up."""
    new = failover.replica()
    while failover.master() is not new:
        with contextlib.suppress(ResponseError):
            # "In progress", or there is "no good replica" yet.
            failover.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
        with anyio.move_on_after(5):
            await eventually(lambda: failover.master() is new)
    await eventually(failover.is_whole)


@pytest.mark.slow
async def test_a_master_that_dies_is_replaced_and_nothing_confirmed_is_lost(
    redis: Redis, redis_url: str, failover: Failover, spool: Spool
) -> None:
    """It is killed while packets are sent; they wait for the replica's copy."""
    old, new = failover.master(), failover.replica()
    random.seed(1)
    before = random.getstate()
    inbox, events, outbox = Inbox(ack=True), Events(), new_outbox(spool)
    async with (
        consuming(redis_url, inbox, on_event=events),
        publishing(redis_url, outbox, on_event=events, copies=Copies(1)) as publisher,
    ):
        await sent(redis, "before")
        await inbox.wait_for(1)
        await finished(redis)
        for n in range(200):
            outbox.put(alert(f"{n}"), stream=EMERGENCY, priority=HIGH, message_id=f"{n}")
            await anyio.lowlevel.checkpoint()
            if n == 100:
                old.kill()
        await events.wait_for("disconnected")
        with failover.hasty():
            await eventually(lambda: failover.master() is new)
        # It comes back as the replica; until then nothing can have a copy.
        old.start()
        await eventually(failover.is_whole)
        await drained(publisher)
        await sent(redis, "after")
        await inbox.wait_for(2)
        await finished(redis)
    assert len(spool) == 0
    assert random.getstate() == before
    assert inbox.ids() == ["before", "after"]
    ids = [envelope.message_id for envelope in await envelopes(redis, EMERGENCY)]
    assert list(dict.fromkeys(ids)) == [f"{n}" for n in range(200)]


@pytest.mark.slow
async def test_a_master_put_out_of_office_is_left_at_once(
    redis: Redis, redis_url: str, failover: Failover, spool: Spool
) -> None:
    """It lives on as the replica, and its connections with it."""
    old, new = failover.master(), failover.replica()
    inbox, events, outbox = Inbox(ack=True), Events(), new_outbox(spool)
    async with (
        consuming(redis_url, inbox, on_event=events),
        publishing(redis_url, outbox, on_event=events) as publisher,
    ):
        await sent(redis, "before")
        await inbox.wait_for(1)
        await finished(redis)
        await put_out_of_office(failover)
        assert failover.master() is new
        assert old.info("replication")["role"] == "slave"
        for n in range(50):
            outbox.put(alert(f"{n}"), stream=EMERGENCY, priority=HIGH, message_id=f"{n}")
        await drained(publisher)
        await sent(redis, "after")
        await inbox.wait_for(2)
        await finished(redis)
    assert inbox.ids() == ["before", "after"]
    assert [envelope.message_id for envelope in await envelopes(redis, EMERGENCY)] == [
        f"{n}" for n in range(50)
    ]


async def test_a_connection_to_a_replica_is_dropped_when_it_refuses_to_write(
    redis: Redis, failover: Failover
) -> None:
    """As after a failover that the sentinels couldn't tell the old master's clients of."""
    await redis.set("a", "1")
    master, replica = failover.master(), failover.replica()
    master.ask("REPLICAOF", "127.0.0.1", replica.port)
    replica.ask("REPLICAOF", "NO", "ONE")
    try:
        # Blocked clients alone were disconnected.
        with pytest.raises((RedisError, OSError)):
            await redis.set("a", "2")
    finally:
        replica.ask("REPLICAOF", "127.0.0.1", master.port)
        master.ask("REPLICAOF", "NO", "ONE")
    await redis.set("a", "3")
    assert master.ask("GET", "a") == b"3"


async def test_a_sentinel_that_hangs_holds_nobody_up(redis_url: str, failover: Failover) -> None:
    failover.sentinels[0].pause()
    try:
        with anyio.fail_after(SOON):
            async with connect(redis_url, name="tests") as client:
                assert await client.ping()
    finally:
        failover.sentinels[0].resume()


@pytest.mark.slow
async def test_a_sentinel_that_was_left_behind_leads_nobody_back(
    redis: Redis, failover: Failover, tmp_path: Path
) -> None:
    """It names the master of before the last failover."""
    wrong = Server(tmp_path / "wrong")
    behind = SentinelServer(tmp_path / "behind", SERVICE, wrong)
    try:
        wrong.start()
        behind.start()
        await put_out_of_office(failover)
        url = f"redis+sentinel://{behind.address},{failover.sentinels[0].address}/{SERVICE}"
        async with connect(url, name="tests") as client:
            await client.set("a", "1")
        assert wrong.ask("EXISTS", "a") == 0
        assert await redis.get("a") == b"1"
    finally:
        behind.kill()
        wrong.kill()


async def test_what_the_sentinels_say_instead_is_told_in_one_line(failover: Failover) -> None:
    addresses = ",".join(sentinel.address for sentinel in failover.sentinels)
    for url, says in (
        (f"redis+sentinel://:secret@{addresses}/nobody", "No such master with that name"),
        ("redis+sentinel://:secret@127.0.0.1:1,127.0.0.1:2/name", "Connect call failed"),
        (
            f"redis+sentinel://{addresses}/{SERVICE}?sentinel_password=secret",
            "without any password",
        ),
        (f"redis+sentinel://ann:secret@{addresses}/{SERVICE}", "invalid username-password"),
    ):
        with pytest.raises(ServerUnreachable) as error:
            await check(url)
        assert says in str(error.value)
        assert "\n" not in str(error.value)
        assert "secret" not in str(error.value)
