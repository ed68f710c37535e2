"""However much goes wrong for the same reason, it is told once, and so is its end."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from tests.oona.bus import (
    CONTROL,
    GROUP,
    UNSIGNED,
    Events,
    Inbox,
    command,
    consumer,
    consuming,
    finished,
    send,
    unmarked,
    until,
)
from tolaria_bus.oona.consumer import Received
from tolaria_bus.oona.dead_letters import begun_key
from tolaria_bus.oona.sealing import seal

COUNT = 20
HELD = 0.5
"""Seconds in which nothing more must be told."""
REFUSED_ONCE = ["accepted", *["dead_letter"] * COUNT, "refused"]


@pytest.fixture
async def memory(redis: Redis) -> AsyncIterator[Redis]:
    """A server that has some in the end."""
    yield redis
    await redis.config_set("maxmemory", "0")


async def send_and_fill(redis: Redis, *, taken: bool) -> None:
    """Send entries, every other one bad, and leave the server without memory, in one step.

    Args:
        redis: The server.
        taken: A consumer has them that is dead.
    """
    async with redis.pipeline(transaction=True) as pipe:
        for n in range(COUNT):
            good: Any = seal(command(str(n)), stream=CONTROL, ring=UNSIGNED, source="test")
            pipe.xadd(CONTROL, good)
            pipe.xadd(CONTROL, {"payload": b"rubbish"})
        if taken:
            pipe.xreadgroup(GROUP, "dead", {CONTROL: ">"})
        pipe.config_set("maxmemory", "1")
        await pipe.execute()


async def test_one_refusal_of_many_dead_letters_is_told_once(memory: Redis, redis_url: str):
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events):
        await send_and_fill(memory, taken=False)
        await inbox.wait_for(COUNT)
        await events.wait_for("refused")
        await anyio.sleep(HELD)
        assert events.names() == ["refused"]
        await memory.config_set("maxmemory", "0")
        await events.wait_for("accepted")
        await finished(memory)
    assert sorted(events.names()) == REFUSED_ONCE


async def test_one_refusal_of_many_redelivered_entries_is_told_once_and_they_are_handed_over(
    memory: Redis, redis_url: str
):
    """They are marked before they are begun, and that takes memory; handling them may free some."""
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events, min_idle=timedelta(milliseconds=100)):
        await send_and_fill(memory, taken=True)
        await inbox.wait_for(COUNT)
        await anyio.sleep(HELD)
        refused = {detail["connection"] for detail in events.of("refused")}
        assert events.names() == ["refused", "refused"]
        assert refused == {f"{CONTROL} marks", f"{CONTROL} dead letters"}
        await memory.config_set("maxmemory", "0")
        await finished(memory)
        await until(lambda: len(events.of("accepted")) == 2)
        await unmarked(memory)
    assert sorted(events.names()) == sorted([*REFUSED_ONCE, "accepted", "refused"])


async def test_commands_behind_a_redelivered_one_are_read_without_memory(
    memory: Redis, redis_url: str
):
    """And an entry whose mark was refused is still counted if it killed before."""
    killer = await send(memory, CONTROL, command("killer"))
    await send(memory, CONTROL, command("mine"))
    await memory.xgroup_create(CONTROL, GROUP, "0")
    await memory.xreadgroup(GROUP, "me", {CONTROL: ">"})
    await memory.hset(begun_key(CONTROL, GROUP), killer, "2")
    await send(memory, CONTROL, command("new"))
    await memory.config_set("maxmemory", "1")
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events, max_deliveries=3):
        await inbox.wait_for(2)
        assert inbox.ids() == ["mine", "new"]
        await memory.config_set("maxmemory", "0")
        assert (await events.wait_for("dead_letter"))["reason"] == "fatal"
        await finished(memory)
        await unmarked(memory)


async def test_a_group_that_cannot_be_made_without_memory_is_made_with_some(
    memory: Redis, redis_url: str
):
    await send(memory, CONTROL, command())
    await memory.config_set("maxmemory", "1")
    inbox, events = Inbox(ack=True), Events()
    async with consumer(redis_url, on_event=events) as made, anyio.create_task_group() as tasks:
        with pytest.raises(OutOfMemoryError):
            await made.prepare()
        tasks.start_soon(made.run, inbox)
        await events.wait_for("refused")
        await memory.config_set("maxmemory", "0")
        await inbox.wait_for(1)
        await made.stop()


async def test_a_handler_that_fails_without_memory_gets_the_entry_again(
    memory: Redis, redis_url: str
):
    await send(memory, CONTROL, command())
    await memory.xgroup_create(CONTROL, GROUP, "0")
    await memory.xreadgroup(GROUP, "me", {CONTROL: ">"})
    await memory.config_set("maxmemory", "1")
    inbox, events = Inbox(ack=True), Events()

    async def once_more(received: Received) -> None:
        if received.failures < 2:
            raise RuntimeError("not now")
        await inbox(received)

    async with consuming(redis_url, once_more, on_event=events, max_deliveries=2):
        await inbox.wait_for(1)
        await finished(memory)
        assert len(events.of("refused")) == 1
        await memory.config_set("maxmemory", "0")
        await events.wait_for("accepted")
        await unmarked(memory)
