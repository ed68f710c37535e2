"""Runs are found, with how they are, by anybody."""

from redis.asyncio import Redis

from tests.oona.bus import STREAMS
from tolaria_bus.oona.directory import beat, enter, forget, runs, status, write_status


async def test_a_run_is_found_with_its_last_beat(redis: Redis):
    await beat(redis, STREAMS, "b", {"host": "one", "beat": 1.0})
    await beat(redis, STREAMS, "a", {"host": "two", "beat": 1.0})
    await beat(redis, STREAMS, "a", {"host": "two", "beat": 2.0})
    assert await runs(redis, STREAMS) == {
        "a": {"host": "two", "beat": 2.0},
        "b": {"host": "one", "beat": 1.0},
    }
    assert list(await runs(redis, STREAMS)) == ["a", "b"]


async def test_the_newest_status_is_what_others_see(redis: Redis):
    assert await status(redis, STREAMS, "a") is None
    await write_status(redis, STREAMS, "a", {"step": 1, "mode": "running"})
    await write_status(redis, STREAMS, "a", {"step": 2})
    assert await status(redis, STREAMS, "a") == {"step": 2}


async def test_what_others_wrote_there_harms_nobody(redis: Redis):
    await beat(redis, STREAMS, "good", {"host": "one"})
    await redis.hset(
        STREAMS.runs, mapping={"not json": "{}", "broken": "{", "list": "[]", b"\xff": "{}"}
    )
    await redis.set(STREAMS.status("broken"), "{")
    assert await runs(redis, STREAMS) == {"good": {"host": "one"}}
    assert await status(redis, STREAMS, "broken") is None


async def test_a_run_can_be_forgotten(redis: Redis):
    await beat(redis, STREAMS, "a", {})
    await write_status(redis, STREAMS, "a", {})
    assert await forget(redis, STREAMS, "a")
    assert not await forget(redis, STREAMS, "a")
    assert await runs(redis, STREAMS) == {}
    assert await status(redis, STREAMS, "a") is None


async def test_a_run_is_entered_before_it_begins_and_a_known_one_is_left_as_it_is(redis: Redis):
    assert await enter(redis, STREAMS, "a", {"host": "one"})
    assert not await enter(redis, STREAMS, "a", {"host": "two"})
    assert await runs(redis, STREAMS) == {"a": {"host": "one", "mode": "starting"}}
    await beat(redis, STREAMS, "a", {"host": "one", "mode": "running"})
    assert not await enter(redis, STREAMS, "a", {"host": "one"})
    assert await runs(redis, STREAMS) == {"a": {"host": "one", "mode": "running"}}
