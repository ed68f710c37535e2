"""Entries of several streams come in the order of their ids, however they are paged."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from tolaria_bus.cli.follow import Follower, last_ids


async def add(redis: Redis, stream: str, *ids: int) -> None:
    for number in ids:
        await redis.xadd(stream, {"n": str(number)}, id=f"{number}-0")


async def read_all(redis: Redis, follower: Follower) -> list[list[int]]:
    """What each read gives, until nothing is left."""
    pages = []
    while entries := await follower.read(redis):
        pages.append([int(entry.entry_id.split("-")[0]) for entry in entries])
    return pages


async def test_streams_are_merged_across_pages(redis: Redis):
    await add(redis, "a", *range(1, 40, 2))
    await add(redis, "b", *range(2, 20, 4))
    await add(redis, "c", 5, 100)
    for page in (1, 2, 3, 7, 1000):
        follower = Follower({"a": "0", "b": "0", "c": "0"}, page=page)
        found = [number for part in await read_all(redis, follower) for number in part]
        assert found == sorted([*range(1, 40, 2), *range(2, 20, 4), 5, 100]), page


async def test_reading_goes_on_where_it_was(redis: Redis):
    await add(redis, "a", 1, 2)
    follower = Follower({"a": "1-0"})
    assert await read_all(redis, follower) == [[2]]
    await add(redis, "a", 3)
    assert await read_all(redis, follower) == [[3]]


async def test_no_streams_give_nothing(redis: Redis):
    assert await Follower({}).read(redis) == []


async def test_the_last_id_of_a_stream_or_of_none(redis: Redis):
    await add(redis, "a", 1, 7)
    found: Any = await last_ids(redis, ["a", "b"])
    assert found == {"a": "7-0", "b": "0-0"}
