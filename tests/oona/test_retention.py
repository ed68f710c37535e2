"""Streams stay bounded, and nothing goes that somebody has yet to read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    RUN,
    SOON,
    STREAMS,
    TELEMETRY,
    Events,
    entries,
    pending,
)
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.retention import Janitor, Retention, retentions
from tolaria_bus.oona.streams import groups_of, hash_tag

STATE = STREAMS.state(RUN)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
WEEK = Retention(length=100_000, age=7 * DAY, hard=100_000)
FOREVER = Retention(length=100_000, age=None, hard=100_000)


async def now_ms(redis: Redis) -> int:
    """By the server's clock."""
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def add(redis: Redis, *ages: timedelta, stream: str = STATE) -> list[str]:
    """Add entries of these ages, oldest first; their ids."""
    now = await now_ms(redis)
    pipe = redis.pipeline(transaction=False)
    for age in ages:
        pipe.xadd(stream, {b"payload": b"x"}, id=f"{now - age // timedelta(milliseconds=1)}-*")
    return [entry_id.decode() for entry_id in await pipe.execute()]


async def ids(redis: Redis, stream: str = STATE) -> list[str]:
    return [entry_id for entry_id, _ in await entries(redis, stream)]


async def read(redis: Redis, group: str, count: int, stream: str = STATE) -> list[str]:
    """Read as a group's consumer; the ids."""
    found: Any = await redis.xreadgroup(group, "me", {stream: ">"}, count=count)
    return [entry_id.decode() for _, page in found for entry_id, _ in page]


async def recall(redis: Redis, stream: str = STATE, **leases: timedelta) -> None:
    """Make it that rounds were made all the time, and groups last lived so long ago."""
    now = await now_ms(redis)
    fields: dict[Any, Any] = {"swept": now, "resumed": now - 100 * DAY // timedelta(milliseconds=1)}
    for group, age in leases.items():
        fields[f"lease:{group}"] = now - age // timedelta(milliseconds=1)
    await redis.hset(groups_of(stream), mapping=fields)


async def knows(redis: Redis, stream: str = STATE) -> dict[str, str]:
    """What rounds have written down."""
    found: Any = await redis.hgetall(groups_of(stream))
    return {field.decode(): value.decode() for field, value in found.items()}


async def groups(redis: Redis, stream: str = STATE) -> set[str]:
    return {group["name"].decode() for group in await redis.xinfo_groups(stream)}


def janitor(
    redis: Redis, kept: Retention | Mapping[str, Retention] = WEEK, **options: Any
) -> Janitor:
    """One that goes round whenever it is asked to."""
    streams = {STATE: kept} if isinstance(kept, Retention) else kept
    options = {"interval": timedelta(), "on_event": options.pop("events", Events()), **options}
    return Janitor(redis, streams, **options)


async def test_what_is_too_old_goes_where_nobody_reads(redis: Redis):
    *_, young = await add(redis, *[9 * DAY] * 250, 8 * DAY, 6 * DAY)
    assert await janitor(redis).round() == 251
    assert await ids(redis) == [young]
    assert await janitor(redis).round() == 0


async def test_what_has_no_age_stays_for_ever(redis: Redis):
    await add(redis, 1000 * DAY)
    assert await janitor(redis, FOREVER).round() == 0


async def test_the_longest_stream_is_cut_to_its_length_but_for_a_node(redis: Redis):
    added = await add(redis, *[DAY] * 1000)
    await janitor(redis, Retention(length=300, age=None, hard=10_000)).round()
    left = await ids(redis)
    assert 300 <= len(left) < 400
    assert left == added[-len(left) :]


async def test_what_a_group_has_yet_to_read_stays_and_goes_when_it_is_done(redis: Redis):
    added = await add(redis, *[9 * DAY] * 10)
    await redis.xgroup_create(STATE, "tamiyo", "0")
    assert await janitor(redis).round() == 0
    await read(redis, "tamiyo", 4)
    assert await janitor(redis).round() == 0, "they are pending"
    await redis.xack(STATE, "tamiyo", added[0], added[1], added[3])
    assert await janitor(redis).round() == 2
    assert await ids(redis) == added[2:], "from the first unfinished one on"
    await redis.xack(STATE, "tamiyo", added[2])
    await janitor(redis).round()
    assert await ids(redis) == added[4:]


async def test_length_too_waits_for_those_that_read(redis: Redis):
    await add(redis, *[DAY] * 1000)
    await redis.xgroup_create(STATE, "tamiyo", "0")
    tight = Retention(length=10, age=None, hard=10_000)
    assert await janitor(redis, tight).round() == 0
    for entry_id in await read(redis, "tamiyo", 450):
        await redis.xack(STATE, "tamiyo", entry_id)
    await janitor(redis, tight).round()
    assert 550 <= len(await ids(redis)) < 650


async def test_the_slowest_living_group_decides(redis: Redis):
    added = await add(redis, *[9 * DAY] * 10)
    for name, done in (("quick", 9), ("slow", 3)):
        await redis.xgroup_create(STATE, name, "0")
        await redis.xack(STATE, name, *await read(redis, name, done))
    await janitor(redis).round()
    assert await ids(redis) == added[3:]


async def test_a_group_without_a_sign_of_life_for_a_week_is_removed_and_told(redis: Redis):
    added = await add(redis, *[9 * DAY] * 3, HOUR)
    await redis.xgroup_create(STATE, "gone", "0")
    await redis.xgroup_create(STATE, "here", "$")
    await recall(redis, gone=8 * DAY, here=6 * DAY)
    events = Events()
    assert await janitor(redis, events=events).round() == 3
    assert await groups(redis) == {"here"}
    assert await ids(redis) == added[3:], "nobody needs the others now"
    assert events.seen == [
        (
            "group_removed",
            {
                "stream": STATE,
                "group": "gone",
                "pending": "0",
                "unread": "4",
                "idle_days": "8.0",
            },
        )
    ]
    assert "lease:gone" not in await knows(redis)


async def test_a_group_seen_for_the_first_time_has_the_whole_time_before_it(redis: Redis):
    await add(redis, 9 * DAY)
    await redis.xgroup_create(STATE, "foreign", "0")
    await recall(redis)
    before = await now_ms(redis)
    assert await janitor(redis).round() == 0
    assert int((await knows(redis))["lease:foreign"]) >= before


async def test_a_foreign_group_lives_by_reading(redis: Redis):
    """It knows nothing of leases; that it read is known to the server."""
    await add(redis, HOUR)
    await redis.xgroup_create(STATE, "foreign", "0")
    await read(redis, "foreign", 1)
    assert await read(redis, "foreign", 1) == [], "asking is enough"
    await recall(redis, foreign=30 * DAY)
    before = await now_ms(redis)
    await janitor(redis).round()
    assert await groups(redis) == {"foreign"}
    assert int((await knows(redis))["lease:foreign"]) >= before - 600_000


async def test_a_consumer_that_asks_no_more_doesnt_keep_its_group_alive(redis: Redis):
    await add(redis, HOUR)
    await redis.xgroup_create(STATE, "dead", "0")
    await read(redis, "dead", 1)
    await recall(redis, dead=DAY)
    events = Events()
    short = janitor(redis, lease=timedelta(milliseconds=1), events=events)
    with anyio.fail_after(SOON):
        while not events.of("group_removed"):
            await short.round()
    (told,) = events.of("group_removed")
    assert (told["group"], told["pending"]) == ("dead", "1")


async def test_own_groups_are_never_removed_and_their_leases_are_renewed(redis: Redis):
    await add(redis, 9 * DAY)
    await redis.xgroup_create(STATE, "mine", "0")
    await recall(redis, mine=30 * DAY)
    before = await now_ms(redis)
    assert await janitor(redis, own={STATE: ["mine"]}).round() == 0
    assert int((await knows(redis))["lease:mine"]) >= before


async def test_after_a_time_without_rounds_absent_groups_may_come_back(redis: Redis):
    """Everything was stopped, or the server's clock was set: nobody could show that he lives."""
    await redis.xgroup_create(STATE, "away", "0", mkstream=True)
    await recall(redis, away=30 * DAY)
    now = await now_ms(redis)
    await redis.hset(groups_of(STATE), "swept", now - 2 * HOUR // timedelta(milliseconds=1))
    await janitor(redis).round()
    assert await groups(redis) == {"away"}
    await janitor(redis).round()
    assert await groups(redis) == {"away"}
    await redis.hset(groups_of(STATE), "resumed", now - 2 * HOUR // timedelta(milliseconds=1))
    await janitor(redis).round()
    assert await groups(redis) == set()


async def test_a_lease_from_the_future_counts_from_now(redis: Redis):
    await redis.xgroup_create(STATE, "odd", "0", mkstream=True)
    await recall(redis, odd=-100 * DAY)
    await janitor(redis).round()
    assert int((await knows(redis))["lease:odd"]) <= await now_ms(redis)


async def test_what_is_known_of_a_group_goes_with_it(redis: Redis):
    await redis.xgroup_create(STATE, "g", "0", mkstream=True)
    await janitor(redis).round()
    await redis.xgroup_destroy(STATE, "g")
    await janitor(redis).round()
    assert set(await knows(redis)) == {"swept", "resumed", "removed"}
    await redis.delete(STATE)
    await janitor(redis).round()
    assert not await redis.exists(groups_of(STATE))


async def test_one_round_in_an_interval_is_enough_for_all_janitors(redis: Redis):
    await add(redis, 9 * DAY)
    await redis.xgroup_create(STATE, "second", "0")
    first = janitor(redis, interval=HOUR)
    second = janitor(redis, interval=HOUR, own={STATE: ["second"]})
    await first.round()
    await redis.xgroup_setid(STATE, "second", "$")
    before = await now_ms(redis)
    assert await second.round() == 0, "the first one has just been round"
    assert int((await knows(redis))["lease:second"]) >= before, "but its own groups live"
    await redis.hset(groups_of(STATE), "swept", before - 50 * 60_000)
    assert await second.round() == 1


async def test_a_large_backlog_goes_in_several_calls(redis: Redis):
    await add(redis, *[9 * DAY] * 25_000, HOUR)
    await redis.config_resetstat()
    assert await janitor(redis).round() == 25_000
    calls = (await redis.info("commandstats"))["cmdstat_xlen"]["calls"]
    assert calls >= 3 * 2, "each looks at the length twice"


async def test_the_hard_limit_cuts_what_nobody_else_keeps_short(redis: Redis):
    """Commands are written by anybody, who needn't know of a limit."""
    await add(redis, *[DAY] * 1000)
    await redis.xgroup_create(STATE, "slow", "0")
    events = Events()
    tight = janitor(redis, Retention(length=100, age=None, hard=300), events=events)
    await tight.round()
    left = len(await ids(redis))
    assert 300 <= left < 400
    gone = str(1000 - left)
    assert events.seen == [
        ("length_limit", {"stream": STATE, "entries": gone, "limit": "300"}),
        ("entries_cut", {"stream": STATE, "group": "slow", "unread": gone, "pending": "0"}),
    ]


@pytest.fixture
async def overrun(redis: Redis) -> Janitor:
    """A stream at its hard limit of 100, with groups that have read 20, none, and all."""
    await redis.xgroup_create(STATE, "some", "0", mkstream=True)
    await redis.xgroup_create(STATE, "none", "0")
    await redis.xgroup_create(STATE, "all", "0")
    await add(redis, *[DAY] * 100)
    await redis.xack(STATE, "some", *await read(redis, "some", 20))
    await redis.xack(STATE, "all", *await read(redis, "all", 100))
    made = janitor(redis, Retention(length=100, age=None, hard=100), events=Events())
    await made.round()
    return made


def told(made: Janitor) -> Events:
    events = made._on_event
    assert isinstance(events, Events)
    return events


async def cut(redis: Redis, count: int) -> None:
    """Add entries as publishing does, with a limit."""
    for _ in range(count):
        await redis.xadd(STATE, {b"payload": b"x"}, maxlen=100, approximate=False)


async def test_entries_that_were_cut_unread_are_told_by_group_once(redis: Redis, overrun: Janitor):
    events = told(overrun)
    assert not events.seen
    await cut(redis, 50)
    await overrun.round()
    assert events.of("entries_cut") == [
        {"stream": STATE, "group": "none", "unread": "50", "pending": "0"},
        {"stream": STATE, "group": "some", "unread": "30", "pending": "0"},
    ]
    assert events.of("length_limit") == [{"stream": STATE, "entries": "50", "limit": "100"}]
    await overrun.round()
    assert len(events.seen) == 3, "each told once"
    await cut(redis, 5)
    await overrun.round()
    assert [detail["unread"] for detail in events.of("entries_cut")[2:]] == ["5", "5"]


async def test_the_use_of_the_limit_is_told_when_it_begins(redis: Redis, overrun: Janitor):
    for _ in range(3):
        await cut(redis, 5)
        await overrun.round()
    assert len(told(overrun).of("length_limit")) == 1
    await overrun.round()
    await cut(redis, 5)
    await overrun.round()
    assert len(told(overrun).of("length_limit")) == 2, "it had ended"


async def test_a_group_that_has_read_on_over_a_gap_is_told_with_the_most_it_can_be(
    redis: Redis, overrun: Janitor
):
    await cut(redis, 50)
    await read(redis, "some", 10)
    await overrun.round()
    losses = {detail["group"]: detail["unread"] for detail in told(overrun).of("entries_cut")}
    assert losses == {"none": "50", "some": "up to 30"}
    await overrun.round()
    assert len(told(overrun).of("entries_cut")) == 2


async def test_a_group_that_keeps_up_loses_nothing(redis: Redis, overrun: Janitor):
    for _ in range(5):
        await cut(redis, 30)
        await redis.xack(STATE, "all", *await read(redis, "all", 100))
        await overrun.round()
    assert "all" not in {detail["group"] for detail in told(overrun).of("entries_cut")}


async def test_what_was_cut_while_it_was_pending_is_told_once(redis: Redis):
    await redis.xgroup_create(STATE, "slow", "0", mkstream=True)
    await add(redis, *[DAY] * 10)
    await read(redis, "slow", 10)
    events = Events()
    made = janitor(redis, events=events)
    await made.round()
    await redis.xtrim(STATE, maxlen=7, approximate=False)
    await made.round()
    await made.round()
    assert events.of("entries_cut") == [
        {"stream": STATE, "group": "slow", "unread": "0", "pending": "3"}
    ]
    await redis.xtrim(STATE, maxlen=5, approximate=False)
    await made.round()
    assert events.of("entries_cut")[1:] == [
        {"stream": STATE, "group": "slow", "unread": "0", "pending": "2"}
    ]


async def test_what_was_cut_while_it_was_pending_holds_nothing_back(redis: Redis):
    """No consumer may ever come to find out that it is gone."""
    added = await add(redis, *[9 * DAY] * 10)
    await redis.xgroup_create(STATE, "slow", "0")
    await read(redis, "slow", 10)
    await redis.xack(STATE, "slow", *added[5:])
    await redis.xdel(STATE, *added[:5])
    await janitor(redis).round()
    assert await ids(redis) == []
    assert await pending(redis, STATE, "slow") == 5, "they are the group's to finish"


async def test_a_group_set_back_by_its_owner_has_lost_nothing_yet(redis: Redis, overrun: Janitor):
    events = told(overrun)
    await redis.xgroup_setid(STATE, "all", (await ids(redis))[9])
    await overrun.round()
    assert not events.seen
    await cut(redis, 50)
    await overrun.round()
    losses = {detail["group"]: detail["unread"] for detail in events.of("entries_cut")}
    assert losses["all"] == "up to 50", "it is 40; the server can't tell its place any more"


async def test_a_group_whose_place_nobody_knows_isnt_told_of_what_went_before(redis: Redis):
    added = await add(redis, *[9 * DAY] * 50, *[DAY] * 50)
    await redis.xgroup_create(STATE, "middle", added[59])
    events = Events()
    made = janitor(redis, events=events)
    assert await made.round() == 50
    await redis.xtrim(STATE, maxlen=45, approximate=False)
    await made.round()
    assert not events.seen, "it is still behind where the group is"
    await redis.xack(STATE, "middle", *await read(redis, "middle", 2))
    await redis.xtrim(STATE, maxlen=43, approximate=False)
    await made.round()
    assert events.of("entries_cut") == [
        {"stream": STATE, "group": "middle", "unread": "up to 2", "pending": "0"}
    ]


async def test_a_full_telemetry_stream_is_ordinary(redis: Redis):
    await redis.xgroup_create(TELEMETRY, "slow", "0", mkstream=True)
    events = Events()
    kept = {TELEMETRY: Retention(100, 7 * DAY, 100, ordinary=True)}
    made = janitor(redis, kept, events=events)
    await made.round()
    await add(redis, *[DAY] * 500, stream=TELEMETRY)
    await made.round()
    assert len(await ids(redis, TELEMETRY)) < 200
    assert not events.seen


async def test_commands_that_are_done_and_deleted_are_no_loss(redis: Redis):
    await redis.xgroup_create(CONTROL, "tolaria", "0", mkstream=True)
    events = Events()
    made = janitor(redis, {CONTROL: FOREVER}, own={CONTROL: ["tolaria"]}, events=events)
    for done in (3, 0, 5, 1):
        await add(redis, *[timedelta()] * 5, stream=CONTROL)
        for entry_id in await read(redis, "tolaria", done + 1, CONTROL):
            await redis.xack(CONTROL, "tolaria", entry_id)
            await redis.xdel(CONTROL, entry_id)
        await made.round()
    assert not events.seen


async def test_keys_of_another_kind_are_told_and_the_others_looked_after(redis: Redis):
    await redis.set(EMERGENCY, "x")
    await add(redis, 9 * DAY)
    await add(redis, 9 * DAY, stream=TELEMETRY)
    await redis.set(groups_of(STATE), "x")
    events = Events()
    made = janitor(
        redis, dict.fromkeys((CONTROL, EMERGENCY, STATE, TELEMETRY), WEEK), events=events
    )
    assert await made.round() == 1
    await made.round()
    assert sorted(detail["error"] for detail in events.of("refused")) == [
        f"{EMERGENCY}: ResponseError: {EMERGENCY} is a string",
        f"{STATE}: ResponseError: {groups_of(STATE)} is a string",
    ]


async def test_entries_go_when_the_server_is_out_of_memory(redis: Redis):
    """That is when it matters most."""
    await add(redis, *[9 * DAY] * 500)
    await redis.config_set("maxmemory", 1)
    try:
        assert await janitor(redis).round() == 500
    finally:
        await redis.config_set("maxmemory", 0)


async def test_it_goes_round_by_itself(redis: Redis):
    events = Events()
    made = janitor(redis, events=events, interval=timedelta(milliseconds=10))
    await redis.xgroup_create(STATE, "gone", "0", mkstream=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.run)
        with anyio.fail_after(SOON):
            while "swept" not in await knows(redis):  # noqa: ASYNC110
                await anyio.sleep(0.005)
            await recall(redis, gone=8 * DAY)
            await events.wait_for("group_removed")
        tasks.cancel_scope.cancel()


async def test_a_server_that_is_away_is_told_and_asked_again():
    events = Events()
    async with connect("unix:///nowhere/valkey.sock", name="tests") as away:
        made = janitor(away, events=events, interval=timedelta(milliseconds=1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.run)
            assert (await events.wait_for("disconnected"))["connection"] == "retention"
            tasks.cancel_scope.cancel()


def test_every_stream_of_a_run_and_of_all_has_a_limit_and_its_record_in_its_slot():
    kept = retentions(STREAMS, RUN)
    assert set(kept) == {
        CONTROL,
        STATE,
        TELEMETRY,
        EMERGENCY,
        STREAMS.outcomes(RUN),
        STREAMS.reports(RUN),
        STREAMS.dead(RUN),
        STREAMS.fleet_control,
        "{oona:control}:dead",
        "{oona:emergency}:dead",
    }
    for stream, retention in kept.items():
        assert retention.length <= retention.hard
        assert hash_tag(groups_of(stream)) == hash_tag(stream)
    assert groups_of("oona:control") == "{oona:control}:groups"
    assert [stream for stream, retention in kept.items() if retention.ordinary] == [TELEMETRY]
    assert kept[CONTROL].age is None, "commands wait for their worker"
