"""What a consumer does when the server, the handler or an entry goes wrong."""

import signal
import sys
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    GROUP,
    SOON,
    STREAMS,
    Events,
    Inbox,
    command,
    consuming,
    finished,
    letters,
    pending,
    send,
    unmarked,
    until,
)
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.consumer import Received
from tolaria_bus.oona.dead_letters import begun_key
from tolaria_bus.oona.embedded import EmbeddedServer

SHARED = STREAMS.fleet_control


async def test_after_flushall_the_group_is_made_again_and_misses_nothing(
    redis: Redis, redis_url: str
):
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events, start="$"):
        await send(redis, CONTROL, command("before"))
        await inbox.wait_for(1)
        await finished(redis)
        async with redis.pipeline(transaction=True) as pipe:
            # Sent before the group can be there again.
            pipe.flushall()
            pipe.xadd(CONTROL, {"json": '{"commandId": "after", "commandType": "PAUSE"}'})
            await pipe.execute()
        await inbox.wait_for(2)
        detail = await events.wait_for("group_recreated")
    assert inbox.ids() == ["before", "after"]
    assert detail == {"stream": CONTROL, "group": GROUP}


async def test_after_the_group_was_destroyed_nothing_comes_twice(redis: Redis, redis_url: str):
    """Finished entries and entries in flight are known."""
    inbox, events = Inbox(), Events()
    options = {"stream": SHARED, "group": "g", "delete": False, "on_event": events}
    async with consuming(redis_url, inbox, **options) as running:  # type: ignore[arg-type]
        for name in ("finished", "in flight", "forgotten"):
            await send(redis, SHARED, command(name))
        taken = await inbox.wait_for(3)
        await taken[0].ack()
        taken[2].forget()
        await redis.xgroup_destroy(SHARED, "g")
        await events.wait_for("group_recreated")
        await send(redis, SHARED, command("new"))
        await inbox.wait_for(4)
        assert inbox.ids() == ["finished", "in flight", "forgotten", "new"]
        # They are pending again, and are finished as if nothing had been.
        await taken[1].ack()
        await inbox.received[3].ack()
        with anyio.fail_after(SOON):
            while await pending(redis, SHARED, "g") > 1:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        assert len(running.in_flight) == 0


@pytest.mark.usefixtures("state_home")
async def test_a_killed_server_costs_no_command(tmp_path: Path):
    """It dies while entries are in flight, and is started again on its data."""
    server = EmbeddedServer.start(tmp_path, "r")
    inbox, events = Inbox(), Events()
    try:
        async with consuming(server.url, inbox, on_event=events):
            async with connect(server.url, name="operator") as redis:
                await send(redis, CONTROL, command("taken"))
                (taken,) = await inbox.wait_for(1)
                await send(redis, CONTROL, command("sent"))
                await inbox.wait_for(2)
            server._process.send_signal(signal.SIGKILL)
            server.stop()
            await events.wait_for("disconnected")
            async with anyio.create_task_group() as tasks:
                # It waits through the outage.
                tasks.start_soon(taken.ack)
                await anyio.sleep(0.1)
                server = EmbeddedServer.start(tmp_path, "r")
            await events.wait_for("reconnected")
            async with connect(server.url, name="operator") as redis:
                await send(redis, CONTROL, command("after"))
                await inbox.wait_for(3)
                assert await pending(redis, CONTROL, GROUP) == 2
        assert inbox.ids() == ["taken", "sent", "after"]
    finally:
        server.stop()


async def test_what_the_server_refuses_is_told_once_and_tried_again(redis: Redis, redis_url: str):
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events):
        await redis.delete(CONTROL)
        await redis.set(CONTROL, "not a stream")
        assert "WRONGTYPE" in (await events.wait_for("refused"))["error"]
        await anyio.sleep(0.3)
        await redis.delete(CONTROL)
        await send(redis, CONTROL, command())
        await inbox.wait_for(1)
    assert len(events.of("refused")) == 1


class Faulty:
    """A handler that fails on some commands, so many times."""

    def __init__(self, failures: dict[str, int]) -> None:
        self.inbox = Inbox(ack=True)
        self.tried: list[str] = []
        self._failures = failures

    async def __call__(self, received: Received) -> None:
        (command_id,) = (received.opened.message.command_id,)  # type: ignore[attr-defined]
        self.tried.append(command_id)
        if self._failures.get(command_id, 0):
            self._failures[command_id] -= 1
            raise RuntimeError("not now")
        await self.inbox(received)


async def test_an_entry_that_the_handler_fails_on_is_tried_again(redis: Redis, redis_url: str):
    handler, events = Faulty({"bad": 2}), Events()
    async with consuming(redis_url, handler, on_event=events):
        await send(redis, CONTROL, command("bad"))
        await handler.inbox.wait_for(1)
        await finished(redis)
    assert handler.tried == ["bad", "bad", "bad"]
    assert events.of("handler_failed")[0]["error"] == "RuntimeError: not now"
    assert handler.inbox.received[0].deliveries == 1


async def test_commands_of_a_source_wait_behind_a_failed_one_and_others_dont(
    redis: Redis, redis_url: str
):
    handler = Faulty({"a1": 2})
    async with consuming(redis_url, handler):
        for name in ("a1", "a2", "b1", "a3", "b2"):
            await send(redis, CONTROL, command(name), source=name[0])
        await handler.inbox.wait_for(5)
    order = handler.inbox.ids()
    assert [name for name in order if name[0] == "a"] == ["a1", "a2", "a3"]
    assert order[:2] == ["b1", "b2"]


async def test_past_its_tries_an_entry_is_a_dead_letter(redis: Redis, redis_url: str):
    handler, events = Faulty({"bad": 99}), Events()
    async with consuming(redis_url, handler, tries=2, on_event=events) as running:
        await send(redis, CONTROL, command("bad"))
        await send(redis, CONTROL, command("good"))
        await events.wait_for("dead_letter")
        await handler.inbox.wait_for(1)
        await finished(redis)
        assert running.dead == {"handler": 1}
    assert handler.tried == ["bad", "bad", "good"]
    (letter,) = await letters(redis)
    assert letter.reason == "handler"
    assert letter.detail == "the handler failed 2 times, at last with RuntimeError: not now"


async def test_stop_doesnt_wait_for_further_tries(redis: Redis, redis_url: str):
    handler, events = Faulty({"bad": 99}), Events()
    async with consuming(redis_url, handler, "first", tries=99, on_event=events) as running:
        await send(redis, CONTROL, command("bad"))
        await send(redis, CONTROL, command("behind"))
        await events.wait_for("handler_failed")
        with anyio.fail_after(SOON):
            await running.stop()
        assert len(running.in_flight) == 0
    again = Inbox(ack=True)
    async with consuming(redis_url, again, "second", min_idle=timedelta(minutes=1)) as second:
        second._rounds.next_sweep = 0.0
        await again.wait_for(2)
    assert again.ids() == ["bad", "behind"]


KILLER = """
import os, signal, sys
from tests.oona.bus import *
from datetime import timedelta
async def handler(received):
    if received.opened.message.command_id == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    await received.ack()
    print(received.opened.message.command_id, flush=True)
async def main():
    async with consuming(sys.argv[1], handler, max_deliveries=3):
        await anyio.sleep(60)
anyio.run(main)
"""


async def test_an_entry_that_kills_its_process_is_a_dead_letter_and_its_neighbours_are_not(
    redis: Redis, redis_url: str
):
    """All of one read, so all of them are delivered again at each start."""
    for name in ("a", "b", "killer", "c", "d"):
        await send(redis, CONTROL, command(name))
    command_line = [sys.executable, "-c", KILLER, redis_url]
    for _ in range(3):
        killed = await anyio.run_process(command_line, check=False, stderr=None)
        assert killed.returncode == -signal.SIGKILL
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, max_deliveries=3, on_event=events):
        await events.wait_for("dead_letter")
        await inbox.wait_for(2)
        await finished(redis)
        await unmarked(redis)
    assert inbox.ids() == ["c", "d"]
    (letter,) = await letters(redis)
    assert (letter.reason, letter.deliveries) == ("fatal", 4)


FAILS_THEN_KILLS = """
import os, signal, sys
from tests.oona.bus import *
async def handler(received):
    if received.failures:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("not now")
async def main():
    async with consuming(sys.argv[1], handler, max_deliveries=3):
        await anyio.sleep(60)
anyio.run(main)
"""


async def test_an_entry_that_kills_when_it_is_tried_again_is_a_dead_letter_too(
    redis: Redis, redis_url: str
):
    """And one that only waited behind it isn't."""
    await send(redis, CONTROL, command("killer"))
    await send(redis, CONTROL, command("behind"))
    command_line = [sys.executable, "-c", FAILS_THEN_KILLS, redis_url]
    for _ in range(3):
        killed = await anyio.run_process(command_line, check=False, stderr=None)
        assert killed.returncode == -signal.SIGKILL
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, max_deliveries=3, on_event=events):
        await events.wait_for("dead_letter")
        await inbox.wait_for(1)
        await finished(redis)
        await unmarked(redis)
    assert inbox.ids() == ["behind"]
    (letter,) = await letters(redis)
    assert (letter.reason, letter.deliveries) == ("fatal", 4)


async def test_a_handler_that_fails_often_on_an_entry_that_comes_again_is_no_killer(
    redis: Redis, redis_url: str
):
    for name in ("bad", "behind"):
        await send(redis, CONTROL, command(name))
    first = Inbox()
    async with consuming(redis_url, first):
        await first.wait_for(2)
    handler = Faulty({"bad": 3, "behind": 1})
    async with consuming(redis_url, handler, max_deliveries=2) as running:
        await handler.inbox.wait_for(2)
        await finished(redis)
        await unmarked(redis)
        assert running.dead == {}
    assert handler.inbox.ids() == ["bad", "behind"]


async def test_what_waits_for_a_further_try_is_not_marked(redis: Redis, redis_url: str):
    await send(redis, CONTROL, command("bad"))
    async with consuming(redis_url, Inbox()) as running:
        await until(lambda: running.handed_over == 1)
    events = Events()
    async with consuming(redis_url, Faulty({"bad": 99}), tries=99, on_event=events) as running:
        await events.wait_for("handler_failed")
        await running.stop()
        assert not await redis.exists(begun_key(CONTROL, GROUP))


async def test_redelivery_alone_never_makes_an_entry_fatal(redis: Redis, redis_url: str):
    """A worker that is restarted often hands a waiting command over each time."""
    await send(redis, CONTROL, command())
    for start in range(1, 8):
        inbox = Inbox()
        async with consuming(redis_url, inbox, max_deliveries=2):
            (received,) = await inbox.wait_for(1)
            await anyio.wait_all_tasks_blocked()
        assert received.deliveries == start
    assert await letters(redis) == []


async def test_a_letter_that_cannot_be_written_holds_up_nobody(redis: Redis, redis_url: str):
    await redis.set(STREAMS.dead("r"), "not a stream")
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events) as running:
        await redis.xadd(CONTROL, {"payload": b"rubbish"})
        await send(redis, CONTROL, command())
        await inbox.wait_for(1)
        assert "WRONGTYPE" in (await events.wait_for("refused"))["error"]
        assert running.dead == {}
        await redis.delete(STREAMS.dead("r"))
        await events.wait_for("dead_letter")
        await finished(redis)
    assert [letter.reason for letter in await letters(redis)] == ["malformed"]
