"""However much goes wrong for the same reason, it is told once, and so is its end."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import CONTROL, GROUP, UNSIGNED, Events, Inbox, command, consuming, finished
from tests.oona.faults.scene import HELD
from tolaria_bus.oona.sealing import seal

COUNT = 20
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


async def test_one_refusal_of_many_redelivered_entries_is_told_once(memory: Redis, redis_url: str):
    """They are marked before they are begun, and that takes memory; reading them doesn't."""
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events, min_idle=timedelta(milliseconds=100)):
        await send_and_fill(memory, taken=True)
        await events.wait_for("refused")
        await anyio.sleep(HELD)
        assert events.names() == ["refused"]
        await memory.config_set("maxmemory", "0")
        await inbox.wait_for(COUNT)
        await finished(memory)
    assert sorted(events.names()) == REFUSED_ONCE
