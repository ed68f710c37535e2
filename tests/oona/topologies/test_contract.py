"""What holds wherever the server is: alone, behind sentinels, spread over a cluster."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    GROUP,
    HIGH,
    NORMAL,
    OUTCOMES,
    SOON,
    STREAMS,
    TELEMETRY,
    Events,
    Inbox,
    alert,
    command,
    consuming,
    drained,
    entries,
    envelopes,
    finished,
    letters,
    metric,
    new_outbox,
    outcome,
    pending,
    publishing,
    send,
    taken_entry,
)
from tolaria_bus.cli.follow import Follower, last_ids
from tolaria_bus.leyline import CommandOutcome, Settlement
from tolaria_bus.oona.connection import ServerClock, check, connect
from tolaria_bus.oona.directory import beat, runs
from tolaria_bus.oona.lease import Lease, LeaseHeld
from tolaria_bus.oona.spool import Spool

RUNS = [f"run-{number}" for number in range(12)]
"""Enough for streams in every third of a cluster's slots."""


async def test_commands_come_in_order_and_are_deleted_when_acknowledged(
    redis: Redis, redis_url: str
) -> None:
    sent = [f"c{n}" for n in range(100)]
    for command_id in sent:
        await send(redis, CONTROL, command(command_id))
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox):
        await send(redis, CONTROL, command("later"))
        await inbox.wait_for(101)
        await finished(redis)
    assert inbox.ids() == [*sent, "later"]
    assert await redis.xlen(CONTROL) == 0


async def test_an_outcome_finishes_its_entry_in_the_same_step(redis: Redis, redis_url: str) -> None:
    entry_id = await taken_entry(redis, CONTROL, GROUP)
    outbox = new_outbox()
    settlement = Settlement(stream=CONTROL, group=GROUP, entry_id=entry_id, delete=True)
    async with publishing(redis_url, outbox, token=1) as publisher:
        for _ in range(2):
            outbox.put(
                outcome("c"),
                stream=OUTCOMES,
                priority=NORMAL,
                message_id="o",
                settlement=settlement,
                durable=True,
            )
            await drained(publisher)
    (written,) = await envelopes(redis, OUTCOMES)
    assert CommandOutcome.FromString(written.payload) == outcome("c")
    assert await pending(redis, CONTROL, GROUP) == 0
    assert await redis.xlen(CONTROL) == 0


@pytest.mark.parametrize("stream", [CONTROL, STREAMS.fleet_control, EMERGENCY])
async def test_a_dead_letter_is_written_in_the_step_that_finishes_its_entry(
    stream: str, redis: Redis, redis_url: str
) -> None:
    rubbish: Any = await redis.xadd(stream, {"payload": b"\xff"})
    await send(redis, stream, command("good"))
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox, stream=stream, delete=stream == CONTROL):
        await inbox.wait_for(1)
        await finished(redis, stream)
    (letter,) = await letters(redis, stream)
    assert (letter.stream, letter.entry_id, letter.reason) == (
        stream,
        rubbish.decode(),
        "malformed",
    )


async def test_packets_for_every_slot_arrive_in_order(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    with Spool(tmp_path / "spool") as spool:
        outbox = new_outbox(spool)
        for n in range(50):
            for run in RUNS:
                outbox.put(metric(n), stream=STREAMS.telemetry(run), priority=NORMAL)
            outbox.put(alert(f"a{n}"), stream=EMERGENCY, priority=HIGH, message_id=f"a{n}")
        async with publishing(redis_url, outbox) as publisher:
            await drained(publisher)
        assert len(spool) == 0
    assert [one.message_id for one in await envelopes(redis, EMERGENCY)] == [
        f"a{n}" for n in range(50)
    ]
    for run in RUNS:
        assert await redis.xlen(STREAMS.telemetry(run)) == 50


async def test_a_run_has_one_worker_and_is_known(redis: Redis) -> None:
    terms = (STREAMS, "r")
    first = Lease(redis, *terms, "one", 1, timedelta(seconds=60))
    await first.acquire()
    with pytest.raises(LeaseHeld):
        await Lease(redis, *terms, "two", 2, timedelta(seconds=60)).acquire()
    assert await first.release()
    await Lease(redis, *terms, "two", 2, timedelta(seconds=60)).acquire()
    await beat(redis, STREAMS, "r", {"host": "here"})
    assert await runs(redis, STREAMS) == {"r": {"host": "here"}}


async def test_a_group_that_was_wiped_is_made_again_and_misses_nothing(
    redis: Redis, redis_url: str
) -> None:
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events):
        await send(redis, CONTROL, command("before"))
        await inbox.wait_for(1)
        await redis.flushall()
        await events.wait_for("group_recreated")
        await send(redis, CONTROL, command("after"))
        await inbox.wait_for(2)
        await finished(redis)
    assert inbox.ids() == ["before", "after"]


async def test_servers_that_forgot_their_scripts_are_sent_them_again(
    redis: Redis, redis_url: str
) -> None:
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox):
        for name in ("one", "two"):
            await redis.script_flush()
            await send(redis, CONTROL, command(name))
            await inbox.wait_for(1)
            await finished(redis)
        await inbox.wait_for(2)
    assert await redis.xlen(CONTROL) == 0


async def test_many_streams_are_followed_at_once(redis: Redis) -> None:
    streams = [STREAMS.outcomes(run) for run in RUNS]
    await redis.xadd(streams[3], {"old": ""})
    follower = Follower(await last_ids(redis, streams))
    assert await follower.read(redis) == []
    for stream in streams:
        await redis.xadd(stream, {"new": ""})
    seen: list[str] = []
    with anyio.fail_after(SOON):
        while len(seen) < len(streams):
            found = await follower.read(redis, timedelta(seconds=SOON))
            seen += [entry.stream for entry in found]
    assert sorted(seen) == sorted(streams)

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(SOON):

            async def read() -> None:
                (entry,) = await follower.read(redis, timedelta(seconds=SOON))
                assert entry.stream == streams[7]

            tasks.start_soon(read)
            await anyio.sleep(0.1)  # the read waits in the servers by now
            await redis.xadd(streams[7], {"later": ""})


async def test_every_server_is_asked_what_it_is_and_what_time_it_has(
    redis: Redis, redis_url: str
) -> None:
    info = await check(redis_url)
    assert (info.name, info.durable, info.evicts) == ("valkey", True, False)
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert (await check(redis_url)).evicts
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    clock = ServerClock(wall=lambda: 0.0)
    await clock.sync(redis)
    now = clock.now_ms()
    entry_id: Any = await redis.xadd("a", {"b": "c"})
    assert now is not None
    assert abs(int(entry_id.decode().partition("-")[0]) - now) < 5000


async def test_every_client_shows_its_name(redis: Redis, redis_url: str) -> None:
    async with connect(redis_url, name="reader-1") as client:
        await client.set(CONTROL, "1")
        await client.set(EMERGENCY, "1")
        assert "reader-1" in [one["name"] for one in await redis.client_list()]


async def test_a_refusal_is_the_callers_and_is_not_retried(redis: Redis) -> None:
    await redis.set(CONTROL, "not a stream")
    pipe = redis.pipeline(transaction=False)
    pipe.xadd(CONTROL, {"a": "b"})
    pipe.xadd(EMERGENCY, {"a": "b"})
    refused, written = await pipe.execute(raise_on_error=False)
    assert isinstance(refused, ResponseError)
    assert [entry_id.encode() for entry_id, _ in await entries(redis, EMERGENCY)] == [written]


async def test_nothing_draws_from_the_global_generator(redis_url: str) -> None:
    random.seed(1)
    before = random.getstate()
    inbox, outbox = Inbox(ack=True), new_outbox()
    async with (
        connect(redis_url, name="tests") as client,
        consuming(redis_url, inbox, min_idle=timedelta(milliseconds=50)),
        publishing(redis_url, outbox) as publisher,
    ):
        await ServerClock().sync(client)
        for run in RUNS:
            outbox.put(metric(), stream=STREAMS.telemetry(run), priority=NORMAL)
        outbox.put(alert("a"), stream=EMERGENCY, priority=HIGH)
        await send(client, CONTROL, command())
        await inbox.wait_for(1)
        await drained(publisher)
        await client.client_kill_filter(_type="normal", skipme=True)
        await send(client, CONTROL, command())
        await inbox.wait_for(2)
        await Follower(dict.fromkeys([TELEMETRY, EMERGENCY], "0")).read(client)
    assert random.getstate() == before
