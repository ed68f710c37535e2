"""Dead letters are listed in pages, chosen by what they say, and purged with a trace."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    STREAMS,
    TELEMETRY,
    UNSIGNED,
    Events,
    Inbox,
    command,
    consuming,
    entries,
    messages,
    metric,
)
from tests.oona.dead import ANN, DEAD, RING, box, dead_entry, everything, found, purged, sealed
from tolaria_bus.oona.dead_letters import build, seen_key
from tolaria_bus.oona.replay import Fate
from tolaria_bus.oona.scripts import Entry
from tolaria_bus.oona.where import BadCondition, Where

MANY = 3_000


async def test_letters_tell_what_their_entry_held(redis: Redis):
    entry_id = await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    (item,) = await found(redis)
    assert item.letter is not None
    assert item.contents is not None
    assert (item.letter.entry_id, item.reason, item.doubt) == (entry_id, "fatal", "")
    assert item.contents.message == command("mine")
    assert (item.contents.command_id, item.contents.source) == ("mine", "operator/bob")
    assert item.last_ms is not None
    assert item.last_ms >= int(entry_id.partition("-")[0])


async def test_what_is_no_letter_is_listed_as_unreadable(redis: Redis):
    await redis.xadd(DEAD, {"payload": b"\xff"})
    await redis.xadd(DEAD, sealed(metric(), UNSIGNED, DEAD))
    items = await found(redis, UNSIGNED, "reason=unreadable")
    assert [item.doubt.partition(":")[0] for item in items] == ["malformed", "type"]
    assert [result.fate for result in await purged(redis)] == [Fate.PURGED] * 2


async def test_a_later_group_that_gives_the_entry_up_moves_the_last_time(
    redis: Redis, redis_url: str
):
    stream, dead = STREAMS.fleet_control, STREAMS.dead_letters_of(STREAMS.fleet_control)
    await redis.xadd(stream, {"payload": b"rubbish"})
    times = []
    for group in ("tolaria.a", "tolaria.b"):
        events = Events()
        async with consuming(
            redis_url, Inbox(), stream=stream, group=group, delete=False, on_event=events
        ):
            await events.wait_for("dead_letter")
        (item,) = await found(redis, dead=dead)
        assert item.letter is not None
        assert item.letter.group == "tolaria.a"
        times.append(item.last_ms or 0)
        member: Any = (await redis.zrange(seen_key(dead), 0, -1))[0]
        # As if it had been a while ago.
        await redis.zadd(seen_key(dead), {member: 1})
    assert times[1] >= times[0] > 1


async def test_conditions_choose_by_what_a_letter_says(redis: Redis):
    await dead_entry(redis, sealed(command("a"), UNSIGNED), "fatal")
    await dead_entry(redis, sealed(command("b"), UNSIGNED, source="tamiyo/1"), "stale")
    await dead_entry(redis, sealed(metric(), UNSIGNED), "type")

    async def chosen(*where: str) -> list[str]:
        return [item.reason for item in await found(redis, UNSIGNED, *where)]

    assert await chosen() == ["fatal", "stale", "type"]
    assert await chosen("reason=stale") == ["stale"]
    assert await chosen("reason=stale", "reason=type") == ["stale", "type"]
    assert await chosen("reason=stale", "source=operator/*") == []
    assert await chosen("source=operator/*") == ["fatal", "type"]
    assert await chosen("type=pause") == ["fatal", "stale"]
    assert await chosen("type=adaptation-command", "command_id=b") == ["stale"]
    assert await chosen("type=TELEMETRY") == ["type"]
    assert await chosen(f"stream={CONTROL}", "group=tolaria") == ["fatal", "stale", "type"]
    assert await chosen("group=other") == []


@pytest.mark.parametrize("word", ["reason", "=x", "reason=", "colour=red", ""])
def test_a_condition_that_means_nothing_is_refused(word: str):
    with pytest.raises(BadCondition, match="reason, stream, group, source, type, command_id"):
        Where.parse([word])


@pytest.mark.slow
async def test_thousands_of_letters_are_paged_in_bounded_memory(redis: Redis):
    body = bytes(4_000)
    for start in range(0, MANY, 500):
        pipe = redis.pipeline(transaction=False)
        for number in range(start, start + 500):
            letter = build(
                Entry(CONTROL, "g", f"{number + 1}-0"), "malformed", "it is", {b"payload": body}
            )
            pipe.xadd(DEAD, sealed(letter, UNSIGNED, DEAD))
        await pipe.execute()
    tracemalloc.start()
    try:
        count, last = 0, "-"
        async for item in box(redis).all():
            count, last = count + 1, item.entry_id
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == MANY
    assert peak < MANY * len(body) / 4
    assert [item async for item in box(redis).all(after=last)] == []


async def test_a_listing_goes_on_after_a_cursor(redis: Redis):
    for number in range(70):
        await dead_entry(redis, sealed(command(str(number)), UNSIGNED), "fatal")
    everyone = await found(redis)
    assert [item.contents.command_id for item in everyone if item.contents] == [
        str(number) for number in range(70)
    ]
    rest = [item async for item in box(redis).all(after=everyone[40].entry_id, page=7)]
    assert rest == everyone[41:]
    assert await box(redis).get(everyone[3].entry_id) == everyone[3]
    assert await box(redis).get("1-1") is None


async def test_purged_letters_are_gone_and_the_rest_stays(redis: Redis):
    for reason in ("stale", "fatal", "stale"):
        await dead_entry(redis, sealed(command(reason), UNSIGNED), reason)
    results = await purged(redis, UNSIGNED, "reason=stale")
    assert [result.fate for result in results] == [Fate.PURGED] * 2
    assert [item.reason for item in await found(redis)] == ["fatal"]
    assert await entries(redis, CONTROL) == []
    (packet,) = await messages(redis, TELEMETRY)
    (event,) = packet.events
    assert event.event_id == "dead_letters_purged"
    assert dict(event.attributes) == {
        "by": ANN,
        "stream": DEAD,
        "count": "2",
        "reason.stale": "2",
    }


async def test_a_purge_that_is_only_tried_changes_nothing(redis: Redis):
    await dead_entry(redis, sealed(command("a"), UNSIGNED), "fatal")
    before = await everything(redis)
    assert [item.fate for item in await purged(redis, dry_run=True)] == [Fate.WOULD_PURGE]
    assert await everything(redis) == before


async def test_a_purge_of_shared_letters_is_an_alert_that_is_signed(redis: Redis):
    stream = STREAMS.fleet_control
    fields: dict[Any, Any] = sealed(command("a"), RING, stream)
    await dead_entry(redis, fields, "fatal", stream=stream, ring=RING)
    await purged(redis, RING, dead=STREAMS.dead_letters_of(stream))
    ((_, told),) = await entries(redis, EMERGENCY)
    assert b"signature" in told
