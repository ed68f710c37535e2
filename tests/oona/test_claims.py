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
    consumer,
    consuming,
    finished,
    send,
    taken_entry,
)
from tolaria_bus.oona.consumer import Received
from tolaria_bus.oona.in_flight import InFlight
from tolaria_bus.oona.reading import Delivered, Member


async def claims(redis: Redis) -> list[Any]:
    """Who has what, oldest first."""
    return await redis.xpending_range(CONTROL, GROUP, "-", "+", 10)


async def deliveries(redis: Redis, name: str) -> dict[str, int]:
    """Delivery counts of what is pending with a consumer."""
    found: Any = await redis.xpending_range(CONTROL, GROUP, "-", "+", 1000, name)
    return {item["message_id"].decode(): item["times_delivered"] for item in found}


async def test_claims_are_extended_without_raising_delivery_counts(redis: Redis, redis_url: str):
    """Another consumer that takes what is old finds nothing to take."""
    # Renewed three times as often: long enough for a busy machine not to let a claim lapse.
    min_idle = timedelta(seconds=1)
    await send(redis, CONTROL, command())
    slow, eager = Inbox(), Inbox()
    async with (
        consuming(redis_url, slow, "slow", min_idle=min_idle),
        consuming(redis_url, eager, "eager", min_idle=min_idle, block=timedelta(milliseconds=20)),
    ):
        with anyio.move_on_after(2.5):
            await eager.wait_for(1)
        taken = slow.received + eager.received
        assert len(taken) == 1
        name = "slow" if slow.received else "eager"
        assert await deliveries(redis, name) == {taken[0].entry_id: 1}


async def test_entries_of_a_dead_consumer_are_taken_over_and_handled(redis: Redis, redis_url: str):
    """In several reads, as there are many."""
    for n in range(150):
        await send(redis, CONTROL, command(str(n)))
    await redis.xgroup_create(CONTROL, GROUP, "0")
    await redis.xreadgroup(GROUP, "dead", {CONTROL: ">"}, count=120)
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox, min_idle=timedelta(milliseconds=200)):
        await inbox.wait_for(150)
        await finished(redis)
    assert sorted(map(int, inbox.ids())) == list(range(150))
    assert sum(received.redelivered for received in inbox.received) == 120
    assert {received.deliveries for received in inbox.received} == {1, 2}


class Clock:
    """Stands still until it is set forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


async def abandon(redis: Redis, *ids: str) -> None:
    """Let entries be those of a consumer that hasn't been heard of for an hour."""
    await redis.xclaim(CONTROL, GROUP, "dead", 0, list(ids), idle=3_600_000, justid=True)


async def test_a_sweep_goes_on_behind_what_the_living_have_and_starts_again_after_its_end(
    redis: Redis, redis_url: str
):
    """One look goes over ten entries for each that it may return: here 100 of 603."""
    ids = [await send(redis, CONTROL, command(str(n))) for n in range(603)]
    await redis.xgroup_create(CONTROL, GROUP, "0")
    await redis.xreadgroup(GROUP, "alive", {CONTROL: ">"}, count=603)
    await abandon(redis, *ids[600:])
    await redis.config_resetstat()
    clock, inbox = Clock(), Inbox(ack=True)
    async with consuming(
        redis_url,
        inbox,
        max_in_flight=10,
        block=timedelta(milliseconds=1),
        monotonic=clock.monotonic,
    ):
        clock.now += 1000.0
        await inbox.wait_for(3)
        assert inbox.ids() == ["600", "601", "602"]
        looks = (await redis.info("commandstats"))["cmdstat_xautoclaim"]["calls"]
        assert looks >= 6, "none looks at everything at once"
        await abandon(redis, ids[0])
        clock.now += 1000.0
        await inbox.wait_for(4)
        assert inbox.ids()[3] == "0"
    assert len(await deliveries(redis, "alive")) == 599, "the living keep theirs"


async def test_what_a_consumer_releases_reaches_another_soon(redis: Redis, redis_url: str):
    """It isn't idle for as long as what the dead leave has to be: that is a minute here."""
    busy, go_on = anyio.Event(), anyio.Event()

    async def slow(received: Received) -> None:
        busy.set()
        await go_on.wait()
        await received.ack()

    inbox = Inbox(ack=True)
    async with consumer(redis_url, "leaving") as leaving, anyio.create_task_group() as tasks:
        for n in range(10):
            await send(redis, CONTROL, command(str(n)))
        await leaving.prepare()
        tasks.start_soon(leaving.run, slow)
        await busy.wait()
        async with consuming(redis_url, inbox, "staying", min_idle=timedelta(seconds=60)):
            tasks.start_soon(leaving.stop)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
            await inbox.wait_for(9)
            await finished(redis)
    assert inbox.ids() == [str(n) for n in range(1, 10)]


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


async def test_a_consumer_that_stops_leaves_what_it_released_to_others(
    redis: Redis, redis_url: str
):
    """However long what it had begun takes it."""
    for name in ("begun", "read", "read too"):
        await send(redis, CONTROL, command(name))
    busy, go_on, events = anyio.Event(), anyio.Event(), Events()
    taken: list[Received] = []

    async def slow(received: Received) -> None:
        taken.append(received)
        busy.set()
        await go_on.wait()

    async with (
        consumer(redis_url, on_event=events) as first,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(first.run, slow)
        await busy.wait()
        async with anyio.create_task_group() as stopping:
            stopping.start_soon(first.stop)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        (begun, *_) = await claims(redis)
        assert begun["message_id"].decode() == taken[0].entry_id
        await first.in_flight.renew()
        released = (await claims(redis))[1:]
        assert all(item["time_since_delivered"] > 86_400_000 for item in released)
        await redis.xclaim(CONTROL, GROUP, "other", 0, [item["message_id"] for item in released])
        await first.in_flight.renew()
        await taken[0].ack()
    assert events.names() == []


async def test_a_stop_waits_for_claims_that_are_being_extended(redis: Redis):
    """Else they would be extended after they were released."""
    entry_id = await taken_entry(redis, CONTROL, GROUP)
    in_flight = InFlight(redis, Member(CONTROL, GROUP, "me"), Events())
    in_flight.hold([Delivered(entry_id, {}, 1, False)])
    order: list[str] = []

    async def renew() -> None:
        await in_flight.renew()
        order.append("extended")

    async def let_go() -> None:
        await in_flight.let_go_all()
        order.append("let go")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(renew)
        tasks.start_soon(let_go)
    assert order == ["extended", "let go"]
    assert not in_flight.held
