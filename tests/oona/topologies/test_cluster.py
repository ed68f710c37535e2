"""A cluster whose nodes die, come back, and hand their slots to each other."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, RedisError, ResponseError

from tests.oona.bus import (
    EMERGENCY,
    HIGH,
    NORMAL,
    STREAMS,
    Events,
    Inbox,
    alert,
    command,
    consuming,
    drained,
    entries,
    envelopes,
    finished,
    metric,
    new_outbox,
    publishing,
    send,
)
from tests.oona.topologies.conftest import wipe
from tests.oona.topologies.places import SLOTS, Cluster
from tests.oona.topologies.processes import eventually
from tolaria_bus.oona.cluster_keys import slot_of
from tolaria_bus.oona.connection import ServerUnreachable, check, connect, servers
from tolaria_bus.oona.copies import Copies
from tolaria_bus.oona.spool import Spool


@pytest.fixture
async def redis_url(cluster: Cluster) -> str:
    cluster.wait_until_whole()
    await wipe(cluster.url)
    return cluster.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with connect(redis_url, name="tests") as client:
        yield client


def run_of_third(third: int) -> str:
    """A run whose streams are in the slots of the first, second or third primary."""
    names = (f"run-{number}" for number in range(1000))
    return next(name for name in names if key_slot(name.encode()) * 3 // SLOTS == third)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("GET", "k"), "k"),
        (("XADD", b"k", "*", "a", "b"), "k"),
        (("EVAL", "return 1", 2, "k", "other", "argument"), "k"),
        (("EVALSHA", "abc", "1", "k"), "k"),
        (("EVAL", "return 1", 0, "argument"), None),
        (("XGROUP CREATE", "k", "g"), "k"),
        (("XGROUP", "CREATE", "k", "g"), "k"),
        (("XINFO", "STREAM", "k"), "k"),
        (("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", "k", ">"), "k"),
        (("XREAD", b"BLOCK", 5, b"STREAMS", "k", "0"), "k"),
        (("PING",), None),
        (("CONFIG GET", "append*"), None),
        (("TIME",), None),
        (("WAIT", 1, 100), None),
    ],
)
def test_a_command_belongs_to_the_slot_of_its_key(words: tuple[Any, ...], key: str | None) -> None:
    assert slot_of(words) == (None if key is None else key_slot(key.encode()))


async def test_what_no_node_can_answer_for_all_is_refused(redis: Redis) -> None:
    with pytest.raises(DataError, match="SCAN sees one node alone"):
        await redis.scan()
    with pytest.raises(ValueError, match="no transaction goes over nodes"):
        redis.pipeline(transaction=True)
    with pytest.raises(ValueError, match="FLUSHALL is for all nodes"):
        redis.pipeline(transaction=False).flushall()
    with pytest.raises(ResponseError, match="same slot"):
        await redis.delete("a", "b")
    assert len(await servers(redis)) == 3


async def test_a_slot_that_moves_is_followed(
    redis: Redis, redis_url: str, cluster: Cluster
) -> None:
    """First while it is on its way (ASK), then when it has another owner (MOVED)."""
    run = run_of_third(2)
    control, outcomes = STREAMS.control(run), STREAMS.outcomes(run)
    source, target = cluster.owner(control), cluster.owner(STREAMS.control(run_of_third(1)))
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox, stream=control):
        await send(redis, control, command("before"))
        await inbox.wait_for(1)
        await finished(redis, control)
        cluster.begin_move(control, target)
        try:
            # Its key isn't there, so it is made where the slot will be.
            await redis.xadd(outcomes, {"a": "b"})
            pipe = redis.pipeline(transaction=False)
            pipe.xadd(outcomes, {"a": "b"})
            pipe.xadd(EMERGENCY, {"a": "b"})
            assert len(await pipe.execute()) == 2
            assert await redis.xlen(outcomes) == 2
            assert source.ask("CLUSTER", "COUNTKEYSINSLOT", key_slot(run.encode())) == 1
        finally:
            cluster.end_move(control, target)
        try:
            await send(redis, control, command("after"))
            await inbox.wait_for(2)
            await finished(redis, control)
        finally:
            cluster.begin_move(control, source)
            cluster.end_move(control, source)
        pipe.xlen(outcomes)
        assert await pipe.execute() == [2]
    assert inbox.ids() == ["before", "after"]


async def test_a_dead_node_hides_no_answer_of_the_others(
    redis: Redis, redis_url: str, cluster: Cluster
) -> None:
    here, there = (STREAMS.telemetry(run_of_third(third)) for third in (1, 2))
    dead = cluster.owner(there)
    pipe = redis.pipeline(transaction=False)
    pipe.xadd(here, {"a": "b"})
    pipe.xadd(there, {"a": "b"})
    await pipe.execute()
    dead.kill()
    try:
        pipe.xadd(there, {"a": "b"})
        pipe.xadd(here, {"a": "b"})
        lost, written = await pipe.execute(raise_on_error=False)
        assert isinstance(lost, RedisConnectionError)
        assert written.decode() in [entry_id for entry_id, _ in await entries(redis, here)]
        with pytest.raises((RedisError, OSError)):
            await redis.xlen(there)
        pipe.xlen(there)
        with pytest.raises((RedisError, OSError)):
            await pipe.execute(raise_on_error=False)
    finally:
        dead.start()
    cluster.wait_until_whole()
    assert await redis.xlen(there) == 1


@pytest.mark.slow
async def test_a_node_that_dies_and_comes_back_costs_nothing(
    redis: Redis, redis_url: str, cluster: Cluster, tmp_path: Path
) -> None:
    """It has streams that are read and written here; nobody takes its place."""
    run = run_of_third(2)
    control, telemetry = STREAMS.control(run), STREAMS.telemetry(run)
    inbox, events = Inbox(ack=True), Events()
    with Spool(tmp_path / "spool") as spool:
        outbox = new_outbox(spool)
        async with (
            consuming(redis_url, inbox, stream=control, on_event=events),
            publishing(redis_url, outbox, on_event=events) as publisher,
        ):
            await send(redis, control, command("before"))
            await inbox.wait_for(1)
            dead = cluster.owner(control)
            dead.kill()
            for n in range(100):
                for stream in (telemetry, EMERGENCY):
                    message_id = f"{stream}/{n}"
                    outbox.put(
                        alert(message_id), stream=stream, priority=HIGH, message_id=message_id
                    )
            await events.wait_for("disconnected")
            dead.start()
            await eventually(cluster.is_whole)
            await drained(publisher)
            await send(redis, control, command("after"))
            await inbox.wait_for(2)
        assert len(spool) == 0
    assert inbox.ids() == ["before", "after"]
    for stream in (telemetry, EMERGENCY):
        ids = [envelope.message_id for envelope in await envelopes(redis, stream)]
        assert list(dict.fromkeys(ids)) == [f"{stream}/{n}" for n in range(100)]


@pytest.fixture
async def partly(redis: Redis, cluster: Cluster) -> AsyncIterator[None]:
    """Nodes serve their own slots while another is dead, and is soon known to be."""
    await redis.config_set("cluster-require-full-coverage", "no")
    with cluster.hasty():
        yield
        cluster.wait_until_whole()
    await redis.config_set("cluster-require-full-coverage", "yes")


@pytest.mark.slow
@pytest.mark.usefixtures("partly")
async def test_a_dead_node_holds_up_its_own_streams_alone(
    redis: Redis, redis_url: str, cluster: Cluster
) -> None:
    """More is put for both sides while it is dead; it is told once, and so is its end."""
    here, there = (STREAMS.telemetry(run_of_third(third)) for third in (0, 2))
    outbox, events = new_outbox(), Events()
    async with publishing(redis_url, outbox, on_event=events) as publisher:
        dead = cluster.owner(there)
        dead.kill()
        for n in range(300):
            outbox.put(metric(), stream=there, priority=NORMAL, message_id=f"{n}")
        await events.wait_for("disconnected")
        for n in range(300):
            outbox.put(metric(), stream=here, priority=NORMAL, message_id=f"{n}")
            outbox.put(metric(), stream=there, priority=NORMAL, message_id=f"{300 + n}")
            if n % 100 == 0:
                await publisher.progress()
        await eventually(lambda: outbox.depth == 600)
        dead.start()
        await eventually(cluster.is_whole)
        await drained(publisher)
    for stream, count in ((here, 300), (there, 600)):
        ids = [envelope.message_id for envelope in await envelopes(redis, stream)]
        assert list(dict.fromkeys(ids)) == [f"{n}" for n in range(count)]
    # A node that has just started refuses for a moment: that is told as well.
    told = [name for name in events.names() if name not in ("refused", "accepted")]
    assert told == ["disconnected", "reconnected"]


@pytest.mark.slow
async def test_a_replica_that_takes_over_has_all_that_was_confirmed(
    redis: Redis, redis_url: str, cluster: Cluster, tmp_path: Path
) -> None:
    """The primary is killed while packets are sent; they wait for the replica's copy."""
    run = run_of_third(0)
    control, telemetry = STREAMS.control(run), STREAMS.telemetry(run)
    dead = cluster.owner(control)
    random.seed(1)
    before = random.getstate()
    inbox, events = Inbox(ack=True), Events()
    with Spool(tmp_path / "spool") as spool:
        outbox = new_outbox(spool)
        async with (
            consuming(redis_url, inbox, stream=control, on_event=events),
            publishing(redis_url, outbox, on_event=events, copies=Copies(1)) as publisher,
        ):
            await send(redis, control, command("before"))
            await inbox.wait_for(1)
            await finished(redis, control)
            for n in range(200):
                outbox.put(alert(f"{n}"), stream=telemetry, priority=HIGH, message_id=f"{n}")
                await anyio.lowlevel.checkpoint()
                if n == 100:
                    dead.kill()
            await events.wait_for("disconnected")
            with cluster.hasty():
                await eventually(lambda: cluster.owner(control) is not dead)
            # It comes back as the replica; until then nothing can have a copy.
            dead.start()
            await eventually(cluster.is_whole)
            await drained(publisher)
            await send(redis, control, command("after"))
            await inbox.wait_for(2)
            await finished(redis, control)
        assert len(spool) == 0
    assert random.getstate() == before
    assert inbox.ids() == ["before", "after"]
    ids = [envelope.message_id for envelope in await envelopes(redis, telemetry)]
    assert list(dict.fromkeys(ids)) == [f"{n}" for n in range(200)]


async def test_a_cluster_that_is_none_is_told_in_one_line(redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable) as error:
        await check("redis+cluster://ann:secret@127.0.0.1:1,127.0.0.1:2")
    assert "no node answers (127.0.0.1:1, 127.0.0.1:2): " in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
