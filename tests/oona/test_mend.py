"""An entry with an id of tomorrow doesn't keep today's from being read."""

from datetime import timedelta
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    HIGH,
    SOON,
    Events,
    Inbox,
    alert,
    command,
    consumer,
    consuming,
    drained,
    entries,
    finished,
    letters,
    new_outbox,
    pending,
    publishing,
    send,
    until,
)
from tolaria_bus.leyline import BusMessageType
from tolaria_bus.oona.connection import ServerClock, connect
from tolaria_bus.oona.consumer import Consumer
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.trust import KeyRing

HIGHEST = "18446744073709551615-18446744073709551615"
TOMORROW_MS = 86_400_000
ALERTS = {BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY}


async def opener(redis: Redis) -> Opener:
    """One that knows the server's clock."""
    clock = ServerClock()
    await clock.sync(redis)
    return Opener(KeyRing(), None, server_now_ms=clock.now_ms)


async def tomorrow(redis: Redis) -> str:
    seconds, _ = await redis.time()
    return f"{seconds * 1000 + TOMORROW_MS}-7"


async def add(redis: Redis, stream: str, entry_id: str) -> None:
    await redis.xadd(stream, {"json": b'{"commandType":"PAUSE"}'}, id=entry_id)


@pytest.mark.parametrize("entry_id", [HIGHEST, "18446744073709551615-1", "tomorrow"])
async def test_a_control_stream_goes_on_after_an_id_from_the_future(
    redis: Redis, redis_url: str, entry_id: str
):
    inbox, events = Inbox(), Events()
    if entry_id == "tomorrow":
        entry_id = await tomorrow(redis)
    options: dict[str, Any] = {"opener": await opener(redis), "on_event": events}
    async with consuming(redis_url, inbox, **options) as running:
        await send(redis, CONTROL, command("taken"))
        (taken,) = await inbox.wait_for(1)
        await add(redis, CONTROL, entry_id)
        mended = await events.wait_for("stream_mended")
        assert mended == {"stream": CONTROL, "left_behind": "0"}
        await send(redis, CONTROL, command("after"))
        await inbox.wait_for(2)
        # What was being worked on meanwhile is neither lost nor begun again.
        await taken.ack()
        await inbox.received[1].ack()
        assert inbox.ids() == ["taken", "after"]
        await finished(redis)
        assert await redis.xlen(CONTROL) == 0
        assert len(running.in_flight) == 0
    (letter,) = await letters(redis)
    assert (letter.reason, letter.entry_id) == ("future", entry_id)
    assert events.names().count("stream_mended") == 1
    assert "group_recreated" not in events.names()


async def test_what_was_sent_behind_an_id_from_the_future_has_letters_too(
    redis: Redis, redis_url: str
):
    await add(redis, CONTROL, await tomorrow(redis))
    for number in range(300):
        await send(redis, CONTROL, command(str(number)))
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, opener=await opener(redis), on_event=events):
        await events.wait_for("stream_mended")
        await send(redis, CONTROL, command("after"))
        await inbox.wait_for(1)
    assert inbox.ids() == ["after"]
    assert len(await letters(redis)) == 301
    assert events.names().count("stream_mended") == 1


async def test_entries_of_a_shared_stream_are_left_behind_when_each_has_its_letter(
    redis: Redis, redis_url: str
):
    await add(redis, EMERGENCY, await tomorrow(redis))
    for number in range(300):
        await send(redis, EMERGENCY, alert(str(number)))
    options: dict[str, Any] = {"stream": EMERGENCY, "accept": ALERTS, "delete": False}
    inbox, events = Inbox(ack=True), Events()
    async with consuming(redis_url, inbox, opener=await opener(redis), on_event=events, **options):
        assert (await events.wait_for("stream_mended"))["left_behind"] == "301"
        await send(redis, EMERGENCY, alert("after"))
        await inbox.wait_for(1)
    assert await redis.xlen(EMERGENCY) == 1
    assert len(await letters(redis, EMERGENCY)) == 301


async def wide(redis: Redis, stream: str, fields: int) -> str:
    """The id of an entry that has many fields."""
    entry_id: Any = await redis.xadd(stream, {f"f{n}": "x" for n in range(fields)})
    return str(entry_id.decode())


@pytest.mark.parametrize("fields", [2000, 2001, 5000, 20_000])
async def test_an_entry_of_many_fields_doesnt_keep_a_shared_stream_from_being_mended(
    redis: Redis, redis_url: str, fields: int
):
    """No script can copy it; it has a dead letter by then."""
    options: dict[str, Any] = {"stream": EMERGENCY, "accept": ALERTS, "delete": False}
    inbox, events = Inbox(ack=True), Events()
    many = await wide(redis, EMERGENCY, fields)
    await send(redis, EMERGENCY, alert("before"))
    await add(redis, EMERGENCY, HIGHEST)
    async with consuming(redis_url, inbox, opener=await opener(redis), on_event=events, **options):
        mended = await events.wait_for("stream_mended")
        await send(redis, EMERGENCY, alert("after"))
        await inbox.wait_for(2)
        await finished(redis, EMERGENCY)
    left = [entry_id for entry_id, _ in await entries(redis, EMERGENCY)]
    assert (many in left) == (fields <= 2000)
    assert mended["left_behind"] == ("1" if many in left else "2")
    assert len(left) == 2 + (many in left)
    assert {letter.entry_id for letter in await letters(redis, EMERGENCY)} == {many, HIGHEST}
    assert "stream_blocked" not in events.names()


async def test_an_entry_of_many_fields_is_not_left_behind_without_a_dead_letter(
    redis: Redis, redis_url: str
):
    """Read before the consumer's group began: nobody has judged it."""
    options: dict[str, Any] = {"stream": EMERGENCY, "accept": ALERTS, "delete": False}
    events = Events()
    many = await wide(redis, EMERGENCY, 5000)
    async with consuming(
        redis_url, Inbox(), opener=await opener(redis), on_event=events, start="$", **options
    ):
        await add(redis, EMERGENCY, HIGHEST)
        blocked = await events.wait_for("stream_blocked")
    assert blocked["entries"] == "one that has too many fields and no dead letter"
    left = [entry_id for entry_id, _ in await entries(redis, EMERGENCY)]
    assert left == [many, HIGHEST]
    assert not [key for key in await redis.keys() if b"mending" in key]


async def test_every_group_of_a_shared_stream_goes_on_where_it_was(redis: Redis, redis_url: str):
    options: dict[str, Any] = {
        "stream": EMERGENCY,
        "accept": ALERTS,
        "delete": False,
        "opener": await opener(redis),
    }
    sent = [await send(redis, EMERGENCY, alert(str(number))) for number in range(250)]
    # One has read and finished all, one has something pending, one has yet to begin.
    for group in ("done", "busy", "new"):
        await redis.xgroup_create(EMERGENCY, group, "0")
    await redis.xreadgroup("done", "c", {EMERGENCY: ">"})
    await redis.xack(EMERGENCY, "done", *sent)
    await redis.xreadgroup("busy", "c", {EMERGENCY: ">"}, count=200)
    await redis.xack(EMERGENCY, "busy", *sent[:150], *sent[151:200])
    await add(redis, EMERGENCY, HIGHEST)
    with pytest.raises(ResponseError):
        await send(redis, EMERGENCY, alert("blocked"))
    inbox, events, outbox = Inbox(ack=True), Events(), new_outbox()
    async with publishing(redis_url, outbox, on_event=Events()) as publisher:
        outbox.put(alert("of the publisher"), stream=EMERGENCY, priority=HIGH)
        async with consuming(redis_url, inbox, group="new", on_event=events, **options):
            assert await events.wait_for("stream_mended") == {
                "stream": EMERGENCY,
                "left_behind": "1",
            }
            await drained(publisher)
            await inbox.wait_for(251)
            await finished(redis, EMERGENCY, "new")
    ids = [entry_id for entry_id, _ in await entries(redis, EMERGENCY)]
    assert ids[:250] == sent
    assert len(ids) == 251
    assert [received.entry_id for received in inbox.received] == ids

    async def rest(group: str) -> list[str]:
        found: Any = await redis.xreadgroup(group, "c", {EMERGENCY: ">"})
        return [entry_id.decode() for entry_id, _ in found[0][1]]

    assert await rest("done") == ids[250:]
    # From what was pending on: what it had finished since comes once more.
    assert await rest("busy") == ids[150:]
    assert await pending(redis, EMERGENCY, "new") == 0


async def test_whoever_waits_for_the_stream_meanwhile_notices_nothing(redis: Redis, redis_url: str):
    block = timedelta(seconds=10 * SOON)
    options: dict[str, Any] = {"stream": EMERGENCY, "accept": ALERTS, "delete": False}
    inbox, waiting, events, other = Inbox(ack=True), Inbox(ack=True), Events(), Events()
    blocked = {"group": "waiting", "block": block, "on_event": other, **options}
    async with (
        connect(redis_url, name="reader", block=block) as reader,
        consuming(redis_url, inbox, opener=await opener(redis), on_event=events, **options),
        anyio.create_task_group() as tasks,
    ):
        made = Consumer(
            reader, redis, name="c", opener=Opener(KeyRing(), None), ring=KeyRing(), **blocked
        )
        await made.prepare()
        # As if its group had had the entry: it isn't woken by it.
        await redis.xgroup_setid(EMERGENCY, "waiting", HIGHEST)
        tasks.start_soon(made.run, waiting)
        with anyio.fail_after(SOON):
            while (await redis.info("clients"))["blocked_clients"] < 2:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        await add(redis, EMERGENCY, HIGHEST)
        await events.wait_for("stream_mended")
        await send(redis, EMERGENCY, alert("after"))
        await inbox.wait_for(1)
        await waiting.wait_for(1)
        tasks.cancel_scope.cancel()
    assert other.seen == []


async def test_a_stream_that_is_too_long_to_be_copied_is_told_and_left(
    redis: Redis, redis_url: str
):
    events = Events()
    options: dict[str, Any] = {"opener": await opener(redis), "on_event": events}
    async with consumer(redis_url, **options) as made, anyio.create_task_group() as tasks:
        made._intake.burying.mend_at_most = 3
        for number in range(5):
            await send(redis, CONTROL, command(str(number)))
        await add(redis, CONTROL, HIGHEST)
        inbox = Inbox()
        await made.prepare()
        tasks.start_soon(made.run, inbox)
        detail = await events.wait_for("stream_blocked")
        assert detail == {"stream": CONTROL, "entries": "more than 3"}
        assert len(inbox.received) == 5
        await until(lambda: made.dead.total() == 1)
        tasks.cancel_scope.cancel()
