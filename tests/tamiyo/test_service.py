"""Tamiyo at a real server: runs found, packets answered once, policies switched, work shared."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.tamiyo.packets import packet
from tolaria_bus.leyline import AdaptationCommand, PolicyUpdate, SystemStatePacket, TelemetryPacket
from tolaria_bus.oona.directory import beat
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.tamiyo import make
from tolaria_bus.tamiyo.service import Service, serve

STREAMS = Streams()
RING = KeyRing.parse("k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0")
PATIENCE = 60
OURS = "tests.tamiyo.policies_for_tests"


async def begin(redis: Redis, *runs: str) -> None:
    """Be runs that somebody works on."""
    for run in runs:
        await beat(redis, STREAMS, run, {"run": run})
        await redis.hset(STREAMS.lease(run), "holder", "me")


async def tell(redis: Redis, told: SystemStatePacket, ring: KeyRing = RING, run: str = "") -> None:
    run = run or told.training_run_id
    told.timestamp_ns = time.time_ns()
    stream = STREAMS.state(run)
    fields: Any = seal(told, stream=stream, source=f"run/{run}", ring=ring)
    await redis.xadd(stream, fields)


async def answers(redis: Redis, run: str = "r") -> list[AdaptationCommand]:
    opener = Opener(RING, None)
    stream = STREAMS.control(run)
    found: Any = await redis.xrange(stream)
    messages = [opener.open(stream, key, fields).message for key, fields in found]
    return [message for message in messages if isinstance(message, AdaptationCommand)]


async def answered(redis: Redis, told: SystemStatePacket) -> AdaptationCommand:
    """Wait for the answer to a packet."""
    with anyio.fail_after(PATIENCE):
        while True:
            for command in await answers(redis, told.training_run_id):
                if command.annotations["in_reply_to"] == told.packet_id:
                    return command
            await anyio.sleep(0.02)


async def ask(redis: Redis, told: SystemStatePacket) -> AdaptationCommand:
    """Send a packet and wait for its answer: it is the newest all the while."""
    await tell(redis, told)
    return await answered(redis, told)


async def settled(redis: Redis, run: str = "r") -> None:
    """Wait until all packets of a run are finished."""
    with anyio.fail_after(PATIENCE):
        while True:
            groups: Any = await redis.xinfo_groups(STREAMS.state(run))
            if groups and groups[0]["pending"] == 0 and groups[0]["lag"] == 0:
                return
            await anyio.sleep(0.02)


@asynccontextmanager
async def tamiyo(url: str, **options: Any) -> AsyncIterator[None]:
    options.setdefault("policy", make("continue", {}))
    service = Service(url=url, ring=RING, **options)
    stopped = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, service, stopped)
        yield
        stopped.set()


async def test_runs_are_found_and_each_packet_is_answered_signed_and_finished(
    redis: Redis, redis_url: str
) -> None:
    await begin(redis, "a")
    async with tamiyo(redis_url, name="t"):
        told = [packet(1, 1.0, run="a"), packet(2, 0.9, run="a")]
        for one in told:
            await ask(redis, one)
        first, second = await answers(redis, "a")
        assert (first.issued_by, first.command_id == second.command_id) == ("tamiyo/t", False)
        await settled(redis, "a")
        # One that begins later is found as well.
        await begin(redis, "b")
        later = packet(1, 1.0, run="b")
        await ask(redis, later)
        assert len(await answers(redis, "b")) == 1


async def test_only_the_runs_that_it_is_for_are_answered(redis: Redis, redis_url: str) -> None:
    await begin(redis, "mine-1", "other")
    async with tamiyo(redis_url, runs="mine-*"):
        mine, other = packet(1, 1.0, run="mine-1"), packet(1, 1.0, run="other")
        await tell(redis, other)
        await ask(redis, mine)
        assert await answers(redis, "other") == []


async def test_the_past_is_read_from_the_stream_by_whoever_answers_next(
    redis: Redis, redis_url: str
) -> None:
    await begin(redis, "r")
    halving = make(f"{OURS}:halving", {}, load=True)
    told = [packet(epoch, 1.0) for epoch in (1, 2, 3)]
    async with tamiyo(redis_url, policy=halving):
        for one in told[:2]:
            await ask(redis, one)
    async with tamiyo(redis_url, policy=halving):
        await ask(redis, told[2])
        found = await answers(redis)
    assert [command.annotations["reason"] for command in found] == [
        "0 epochs are past", "1 epochs are past", "2 epochs are past",
    ]  # fmt: skip


async def test_two_of_them_share_the_work_and_know_the_same_past(
    redis: Redis, redis_url: str
) -> None:
    await begin(redis, "r")
    halving = make(f"{OURS}:halving", {}, load=True)
    told = [packet(epoch, 1.0) for epoch in range(1, 21)]
    async with (
        tamiyo(redis_url, policy=halving, name="one"),
        tamiyo(redis_url, policy=halving, name="two"),
    ):
        for one in told:
            await ask(redis, one)
        await settled(redis)
        found = await answers(redis)
    assert len(found) == len(told)
    reasons = {command.annotations["reason"] for command in found}
    assert reasons == {f"{past} epochs are past" for past in range(20)}


async def test_packets_that_are_old_or_superseded_are_finished_and_not_answered(
    redis: Redis, redis_url: str
) -> None:
    await begin(redis, "r")
    told = [packet(epoch, 1.0) for epoch in (1, 2, 3)]
    for one in told:
        await tell(redis, one)
        await anyio.sleep(0.01)
    # Until it is more than a second old: then the server says which one is the newest.
    await anyio.sleep(1.1)
    async with tamiyo(redis_url):
        await answered(redis, told[-1])
        await settled(redis)
        found = await answers(redis)
    assert [command.annotations["in_reply_to"] for command in found] == [told[-1].packet_id]
    async with tamiyo(redis_url, max_age=timedelta(milliseconds=1)):
        await settled(redis)


async def test_a_packet_of_another_run_or_with_a_bad_signature_is_a_dead_letter(
    redis: Redis, redis_url: str
) -> None:
    await begin(redis, "r")
    async with tamiyo(redis_url):
        await tell(redis, packet(1, 1.0, run="x"), run="r")
        await tell(redis, packet(2, 1.0), KeyRing.parse("k1:Zm9yZ2VkLWZvcmdlZC1mb3JnZWQtZm9yZ2Vk"))
        good = packet(3, 1.0)
        await ask(redis, good)
        await settled(redis)
        assert len(await answers(redis)) == 1
        assert await redis.xlen(STREAMS.dead("r")) == 2


async def test_a_policy_is_switched_while_a_run_goes_on_and_is_known_to_one_that_starts_later(
    redis: Redis, redis_url: str
) -> None:
    await begin(redis, "r")

    async def switch(policy: str, payload: bytes = b"", ring: KeyRing = RING) -> None:
        update = PolicyUpdate(version=1, policy_id=policy, payload=payload)
        fields: Any = seal(update, stream=STREAMS.policies, source="operator/ann", ring=ring)
        await redis.xadd(STREAMS.policies, fields)

    async def policy_of_next(epoch: int) -> str:
        told = packet(epoch, 1.0)
        return (await ask(redis, told)).annotations["policy"]

    epoch = 1
    async with tamiyo(redis_url):
        assert await policy_of_next(epoch) == "continue"
        await switch("heuristic", b'{"patience": 7}')
        with anyio.fail_after(PATIENCE):
            while await policy_of_next(epoch := epoch + 1) != "heuristic(patience=7)":
                pass
        # What can't be done changes nothing, and is told; what isn't signed is nobody's word.
        await switch("os:system")
        await switch("continue", ring=KeyRing())
        with anyio.fail_after(PATIENCE):
            while len(await refusals(redis)) < 2:  # noqa: ASYNC110 - a stream is polled
                await anyio.sleep(0.02)
        assert await policy_of_next(epoch + 1) == "heuristic(patience=7)"
    async with tamiyo(redis_url):
        assert await policy_of_next(epoch + 2) == "heuristic(patience=7)"


async def refusals(redis: Redis) -> set[str]:
    opener = Opener(RING, None)
    found: Any = await redis.xrange(STREAMS.emergency)
    messages = [opener.open(STREAMS.emergency, key, fields).message for key, fields in found]
    names = {
        event.event_id
        for message in messages
        if isinstance(message, TelemetryPacket)
        for event in message.events
    }
    return names & {"policy_refused", "policy_unread"}


async def test_an_answer_is_written_once_though_its_packet_is_read_twice(
    redis: Redis, redis_url: str
) -> None:
    await begin(redis, "r")
    told = packet(1, 1.0)
    async with tamiyo(redis_url, name="t"):
        await ask(redis, told)
        await settled(redis)
    # As if it had died between the answer and the acknowledgement.
    await redis.xgroup_setid(STREAMS.state("r"), "tamiyo", "0")
    async with tamiyo(redis_url, name="t"):
        await settled(redis)
    assert len(await answers(redis)) == 1


async def test_a_server_that_does_not_answer_is_one_line(tmp_path) -> None:
    from tolaria_bus.oona.connection import ServerUnreachable

    with pytest.raises(ServerUnreachable):
        await serve(
            Service(url=f"unix://{tmp_path}/none.sock", policy=make("continue", {})), anyio.Event()
        )
