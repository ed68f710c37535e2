"""Claims: extended while an entry is worked on, taken over from the dead, not from the living."""

from datetime import timedelta
from typing import Any

import anyio
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    GROUP,
    Events,
    Inbox,
    command,
    consuming,
    finished,
    send,
    taken_entry,
)
from tolaria_bus.oona.in_flight import InFlight
from tolaria_bus.oona.reading import Member


async def deliveries(redis: Redis, name: str) -> dict[str, int]:
    """Delivery counts of what is pending with a consumer."""
    found: Any = await redis.xpending_range(CONTROL, GROUP, "-", "+", 1000, name)
    return {item["message_id"].decode(): item["times_delivered"] for item in found}


async def test_claims_are_extended_without_raising_delivery_counts(redis: Redis, redis_url: str):
    """Another consumer that takes what is old finds nothing to take."""
    min_idle = timedelta(milliseconds=150)
    await send(redis, CONTROL, command())
    slow, eager = Inbox(), Inbox()
    async with (
        consuming(redis_url, slow, "slow", min_idle=min_idle),
        consuming(redis_url, eager, "eager", min_idle=min_idle, block=timedelta(milliseconds=20)),
    ):
        with anyio.move_on_after(1.0):
            await eager.wait_for(1)
        taken = slow.received + eager.received
        assert len(taken) == 1
        name = "slow" if slow.received else "eager"
        assert await deliveries(redis, name) == {taken[0].entry_id: 1}


async def test_entries_of_a_dead_consumer_are_taken_over_and_handled(redis: Redis, redis_url: str):
    for n in range(700):
        await send(redis, CONTROL, command(str(n)))
    await redis.xgroup_create(CONTROL, GROUP, "0")
    await redis.xreadgroup(GROUP, "dead", {CONTROL: ">"}, count=650)
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox, min_idle=timedelta(milliseconds=50)):
        await inbox.wait_for(700)
        await finished(redis)
    assert sorted(map(int, inbox.ids())) == list(range(700))
    assert sum(received.redelivered for received in inbox.received) == 650
    assert {received.deliveries for received in inbox.received} == {1, 2}


async def test_entries_that_were_deleted_while_pending_are_counted_and_told(
    redis: Redis, redis_url: str
):
    ids = [await send(redis, CONTROL, command(str(n))) for n in range(4)]
    await redis.xgroup_create(CONTROL, GROUP, "0")
    await redis.xreadgroup(GROUP, "me", {CONTROL: ">"}, count=2)
    await redis.xreadgroup(GROUP, "dead", {CONTROL: ">"}, count=2)
    await redis.xdel(CONTROL, ids[0], ids[2])
    inbox, events = Inbox(ack=True), Events()
    async with consuming(
        redis_url, inbox, on_event=events, min_idle=timedelta(milliseconds=50)
    ) as running:
        await inbox.wait_for(2)
        await finished(redis)
        assert running.lost == 2
    assert [detail["entries"] for detail in events.of("entries_lost")] == [ids[0], ids[2]]
    assert inbox.ids() == ["1", "3"]


async def test_a_claim_that_another_consumer_took_is_told_and_not_taken_back(
    redis: Redis, redis_url: str
):
    inbox, events = Inbox(), Events()
    async with consuming(redis_url, inbox, on_event=events, min_idle=timedelta(milliseconds=200)):
        entry_id = await send(redis, CONTROL, command())
        await inbox.wait_for(1)
        await redis.xclaim(CONTROL, GROUP, "other", 0, [entry_id])
        assert await events.wait_for("claims_lost") == {"stream": CONTROL, "entries": entry_id}
        (item,) = await redis.xpending_range(CONTROL, GROUP, "-", "+", 10)
        assert item["consumer"] == b"other"


async def test_an_entry_that_becomes_a_dead_letter_meanwhile_is_no_lost_claim(redis: Redis):
    """The server has the letter, and its reply is still on the way."""
    entry_id = await taken_entry(redis, CONTROL, GROUP)
    events = Events()
    in_flight = InFlight(redis, Member(CONTROL, GROUP, "me"), events)
    in_flight.add_dying(entry_id)
    await redis.xack(CONTROL, GROUP, entry_id)
    await in_flight.renew()
    assert events.seen == []
    in_flight.remove(entry_id)
    in_flight.add(entry_id)
    await in_flight.renew()
    assert events.names() == ["claims_lost"]
