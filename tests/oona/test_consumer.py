"""Entries come once, in order, own pending ones first, and stay until they are finished."""

from datetime import timedelta
from typing import Any

import anyio
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    GROUP,
    SOON,
    STREAMS,
    Events,
    Inbox,
    command,
    consumer,
    consuming,
    entries,
    finished,
    letters,
    pending,
    send,
)
from tolaria_bus.oona.consumer import Received

SHARED = STREAMS.fleet_control


async def test_entries_come_in_order_and_are_deleted_when_acknowledged(
    redis: Redis, redis_url: str
):
    sent = [f"c{n}" for n in range(200)]
    for command_id in sent:
        await send(redis, CONTROL, command(command_id))
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox) as running:
        await inbox.wait_for(200)
        await finished(redis)
        assert inbox.ids() == sent
        assert await redis.xlen(CONTROL) == 0
        assert len(running.in_flight) == 0
        assert (running.handed_over, running.in_flight.acknowledged) == (200, 200)
    first = inbox.received[0]
    assert (first.stream, first.group, first.deliveries) == (CONTROL, GROUP, 1)
    assert not first.redelivered


async def test_a_handed_over_entry_stays_pending_until_it_is_finished(redis: Redis, redis_url: str):
    await send(redis, CONTROL, command())
    inbox = Inbox()
    async with consuming(redis_url, inbox) as running:
        (received,) = await inbox.wait_for(1)
        assert await pending(redis, CONTROL, GROUP) == 1
        await received.ack()
        assert await pending(redis, CONTROL, GROUP) == 0
        assert len(running.in_flight) == 0


async def test_acknowledgements_can_go_in_groups(redis: Redis, redis_url: str):
    for n in range(500):
        await send(redis, CONTROL, command(str(n)))
    await redis.config_resetstat()

    async def handler(received: Received) -> None:
        received.ack_soon()

    async with consuming(redis_url, handler) as running:
        await finished(redis)
        with anyio.fail_after(SOON):
            while running.in_flight.acknowledged < 500:  # noqa: ASYNC110
                await anyio.sleep(0.005)
    calls: Any = await redis.info("commandstats")
    assert calls["cmdstat_xack"]["calls"] <= 10
    assert await redis.xlen(CONTROL) == 0


async def test_what_is_acknowledged_at_the_last_moment_is_neither_released_nor_left(
    redis: Redis, redis_url: str
):
    for n in range(300):
        await send(redis, CONTROL, command(str(n)))

    async with consumer(redis_url) as made, anyio.create_task_group() as tasks:

        async def handler(received: Received) -> None:
            received.ack_soon()
            if made.handed_over == 200:
                tasks.start_soon(made.stop)

        await made.run(handler)
        taken = made.handed_over
    assert taken >= 200
    assert await redis.xlen(CONTROL) == 300 - taken
    assert await pending(redis, CONTROL, GROUP) == 300 - taken


async def test_an_entry_of_a_shared_stream_is_acknowledged_and_stays(redis: Redis, redis_url: str):
    await send(redis, SHARED, command())
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox, stream=SHARED, group="tolaria.r", delete=False):
        await inbox.wait_for(1)
        await finished(redis, SHARED, "tolaria.r")
    assert await redis.xlen(SHARED) == 1


async def test_a_shared_stream_is_read_from_where_the_group_began(redis: Redis, redis_url: str):
    await send(redis, SHARED, command("before"))
    inbox = Inbox(ack=True)
    options: dict[str, Any] = {
        "stream": SHARED,
        "group": "tolaria.r",
        "delete": False,
        "start": "$",
    }
    async with consuming(redis_url, inbox, **options):
        await send(redis, SHARED, command("after"))
        await inbox.wait_for(1)
        await finished(redis, SHARED, "tolaria.r")
    await send(redis, SHARED, command("while away"))
    async with consuming(redis_url, inbox, **options):
        await inbox.wait_for(2)
    assert inbox.ids() == ["after", "while away"]


async def test_own_pending_entries_come_first_after_a_crash(redis: Redis, redis_url: str):
    for n in range(5):
        await send(redis, CONTROL, command(f"old{n}"))
    inbox = Inbox()
    async with consuming(redis_url, inbox):
        await inbox.wait_for(5)
        await inbox.received[1].ack()
    for n in range(5):
        await send(redis, CONTROL, command(f"new{n}"))
    again = Inbox(ack=True)
    async with consuming(redis_url, again, max_in_flight=2):
        await again.wait_for(9)
        await finished(redis)
    assert again.ids() == ["old0", "old2", "old3", "old4", *(f"new{n}" for n in range(5))]
    assert [received.redelivered for received in again.received] == [True] * 4 + [False] * 5
    assert [received.deliveries for received in again.received[:4]] == [2] * 4


async def test_no_more_are_in_flight_than_allowed(redis: Redis, redis_url: str):
    for n in range(10):
        await send(redis, CONTROL, command(str(n)))
    inbox = Inbox()
    async with consuming(redis_url, inbox, max_in_flight=3) as running:
        await inbox.wait_for(3)
        seen = running.last_read
        with anyio.fail_after(SOON):
            while running.last_read == seen:  # noqa: ASYNC110 - the loop lives, with nothing to do
                await anyio.sleep(0.01)
        assert len(inbox.received) == 3
        await inbox.received[0].ack()
        await inbox.wait_for(4)
        inbox.received[1].forget()
        await inbox.wait_for(5)
        assert len(running.in_flight) == 3


async def test_what_is_forgotten_stays_pending_and_isnt_handed_over_again(
    redis: Redis, redis_url: str
):
    """It is settled with its outcome; after a lost connection it may be read again before that."""
    await send(redis, CONTROL, command("c"))
    inbox, events = Inbox(), Events()
    async with consuming(redis_url, inbox, on_event=events) as running:
        (received,) = await inbox.wait_for(1)
        received.forget()
        await redis.client_kill_filter(_type="normal", skipme=True)
        await events.wait_for("reconnected")
        await send(redis, CONTROL, command("d"))
        await inbox.wait_for(2)
        assert inbox.ids() == ["c", "d"]
        assert running.in_flight.ids() == {inbox.received[1].entry_id}
    assert await pending(redis, CONTROL, GROUP) == 2


async def test_a_lost_connection_is_told_and_nothing_comes_twice(redis: Redis, redis_url: str):
    inbox, events = Inbox(), Events()
    async with consuming(redis_url, inbox, on_event=events):
        for n in range(3):
            await send(redis, CONTROL, command(str(n)))
        await inbox.wait_for(3)
        await redis.client_kill_filter(_type="normal", skipme=True)
        assert (await events.wait_for("disconnected"))["connection"] == CONTROL
        await events.wait_for("reconnected")
        await send(redis, CONTROL, command("3"))
        await inbox.wait_for(4)
    assert inbox.ids() == ["0", "1", "2", "3"]


async def test_stop_lets_others_have_what_was_not_handed_over(redis: Redis, redis_url: str):
    """And what was, is waited for."""
    for n in range(10):
        await send(redis, CONTROL, command(str(n)))
    busy, go_on = anyio.Event(), anyio.Event()
    taken: list[Received] = []

    async def slow(received: Received) -> None:
        taken.append(received)
        busy.set()
        await go_on.wait()

    async with consumer(redis_url, "first") as first, anyio.create_task_group() as tasks:
        tasks.start_soon(first.run, slow)
        await busy.wait()
        async with anyio.create_task_group() as stopping:
            stopping.start_soon(first.stop)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        assert len(taken) == 1
        second = Inbox(ack=True)
        # It takes nothing that isn't long idle.
        async with consuming(redis_url, second, "second", min_idle=timedelta(hours=1)) as other:
            other._rounds.next_sweep = 0.0
            await second.wait_for(9)
        assert second.ids() == [str(n) for n in range(1, 10)]
        assert {received.deliveries for received in second.received} == {2}
        await taken[0].ack()
        # Nothing is in flight any more: run ends by itself.


async def test_stop_doesnt_wait_for_a_blocking_read(redis: Redis, redis_url: str):
    async with (
        consumer(redis_url, block=timedelta(hours=1)) as made,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(made.run, Inbox())
        await anyio.sleep(0.05)
        with anyio.fail_after(SOON):
            await made.stop()


async def test_a_cancelled_consumer_keeps_what_it_handed_over(redis: Redis, redis_url: str):
    for n in range(3):
        await send(redis, CONTROL, command(str(n)))
    inbox = Inbox()
    async with consuming(redis_url, inbox, "first"):
        await inbox.wait_for(3)
    # Handed over, so still its own.
    assert await pending(redis, CONTROL, GROUP) == 3
    again = Inbox(ack=True)
    async with consuming(redis_url, again, "first"):
        await again.wait_for(3)


async def test_an_acknowledgement_after_the_end_is_sent_at_once(redis: Redis, redis_url: str):
    await send(redis, CONTROL, command())
    inbox = Inbox()
    async with consumer(redis_url) as made:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.run, inbox)
            await inbox.wait_for(1)
            tasks.cancel_scope.cancel()
        await inbox.received[0].ack()
        assert await pending(redis, CONTROL, GROUP) == 0


async def test_an_entry_by_hand_is_a_command(redis: Redis, redis_url: str):
    await redis.xadd(CONTROL, {"json": '{"commandType": "pause"}'})
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox):
        (received,) = await inbox.wait_for(1)
    assert received.opened.source == ""
    assert await letters(redis) == []


async def test_two_consumers_share_a_group_and_nothing_comes_to_both(redis: Redis, redis_url: str):
    inboxes = [Inbox(ack=True), Inbox(ack=True)]
    async with (
        consuming(redis_url, inboxes[0], "a"),
        consuming(redis_url, inboxes[1], "b"),
    ):
        for n in range(300):
            await send(redis, CONTROL, command(str(n)))
        with anyio.fail_after(SOON):
            while sum(len(inbox.received) for inbox in inboxes) < 300:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        await finished(redis)
    assert sorted(map(int, inboxes[0].ids() + inboxes[1].ids())) == list(range(300))


async def test_nothing_is_left_behind(redis: Redis, redis_url: str):
    """Neither here nor on the server, after everything is finished."""
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, on_event=events) as running:
        await send(redis, CONTROL, command())
        await redis.xadd(CONTROL, {"payload": b"rubbish"})
        await inbox.wait_for(1)
        await events.wait_for("dead_letter")
        await finished(redis)
        assert not running.in_flight._entries
        assert not running.in_flight._waiting
    assert await entries(redis, CONTROL) == []
    keys: Any = await redis.keys("*")
    dead = STREAMS.dead("r")
    assert sorted(keys) == sorted(key.encode() for key in (CONTROL, dead, f"{dead}:seen"))
