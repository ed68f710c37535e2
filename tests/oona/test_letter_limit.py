"""Dead letters take a bounded place in the server, whatever is sent."""

import os
from typing import Any

import anyio
from redis.asyncio import Redis

from tests.oona.bus import CONTROL, SOON, STREAMS, Events, Inbox, command, consuming, entries, send
from tolaria_bus.oona.dead_letters import PART_BYTES, build
from tolaria_bus.oona.letter_limit import LETTER_BYTES, LetterLimit
from tolaria_bus.oona.scripts import Entry

DEAD = STREAMS.dead("r")
MEBIBYTE = 1 << 20


async def held(redis: Redis) -> int:
    """Bytes of the letters in the server's memory."""
    return int(await redis.memory_usage(DEAD, samples=0) or 0)


async def filled(redis: Redis, letters: int, size: int) -> list[bytes]:
    """Entries of so many bytes; their ids."""
    ids: list[Any] = [await redis.xadd(DEAD, {"payload": os.urandom(size)}) for _ in range(letters)]
    return ids


def limit(redis: Redis, events: Events, most: int) -> LetterLimit:
    made = LetterLimit(redis, DEAD, events)
    made.most = most
    return made


async def test_above_the_limit_the_oldest_letters_go_and_that_is_told(redis: Redis):
    old = await filled(redis, 300, 500)
    large = await filled(redis, 12, MEBIBYTE)
    events = Events()
    await limit(redis, events, 8 * MEBIBYTE).wrote(MEBIBYTE)
    assert await held(redis) <= 8 * MEBIBYTE
    left = [entry_id.encode() for entry_id, _ in await entries(redis, DEAD)]
    assert left == [*old, *large][-len(left) :]
    assert len(left) >= 5
    (told,) = events.of("letters_cut")
    assert int(told["letters"]) == 312 - len(left)
    assert int(told["bytes"]) <= 8 * MEBIBYTE


async def test_below_it_nothing_happens_whatever_was_deleted_meanwhile(redis: Redis):
    ids = await filled(redis, 12, MEBIBYTE)
    await redis.xdel(DEAD, *ids[2:])
    events = Events()
    await limit(redis, events, 8 * MEBIBYTE).wrote(MEBIBYTE)
    assert [entry_id.encode() for entry_id, _ in await entries(redis, DEAD)] == ids[:2]
    assert events.names() == []


async def test_the_last_letter_stays_however_large(redis: Redis):
    await filled(redis, 2, MEBIBYTE)
    await limit(redis, Events(), 1000).wrote(MEBIBYTE)
    assert await redis.xlen(DEAD) == 1


async def test_the_server_is_asked_once_for_so_many_bytes(redis: Redis):
    """By the first letter, for nothing is known then, and by each that completes ``every``."""
    await filled(redis, 2, 1000)
    made = limit(redis, Events(), 1000)
    made.every = 5000
    asked = []
    for _ in range(12):
        await made.wrote(1000)
        asked.append(await redis.xlen(DEAD) == 1)
        if asked[-1]:
            await filled(redis, 1, 1000)
    assert [n for n, cut in enumerate(asked) if cut] == [0, 5, 10]


async def test_a_user_who_may_not_ask_is_told_so_once(redis: Redis):
    await redis.acl_setuser(
        "limited",
        enabled=True,
        nopass=True,
        keys=["*"],
        categories=["+@all"],
        commands=["-memory|usage"],
    )
    events = Events()
    made = limit(redis, events, 1000)
    try:
        await redis.auth("", "limited")
        await made.wrote(1000)
        await made.wrote(LETTER_BYTES)
    finally:
        await redis.auth("", "default")
        await redis.acl_deluser("limited")
    (told,) = events.of("letters_unlimited")
    assert told["stream"] == DEAD
    assert "permission" in told["error"]


async def test_a_flood_of_rubbish_leaves_the_server_a_bounded_stream(redis: Redis, redis_url: str):
    inbox, events = Inbox(ack=True), Events()
    rubbish: Any = {"payload": os.urandom(900_000)}
    async with consuming(redis_url, inbox, on_event=events) as running:
        running._intake.burying.limit.most = 8 * MEBIBYTE
        running._intake.burying.limit.every = 2 * MEBIBYTE
        for _ in range(40):
            await redis.xadd(CONTROL, rubbish)
        await send(redis, CONTROL, command("after it"))
        await inbox.wait_for(1)
        with anyio.fail_after(SOON):
            while len(events.of("dead_letter")) < 40:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        assert running.dead == {"malformed": 40}
        # What a writer adds between two questions comes on top.
        assert 2 * MEBIBYTE < await held(redis) < 11 * MEBIBYTE
    assert events.of("letters_cut")


def test_of_an_entry_that_is_too_large_to_be_put_back_a_part_is_kept():
    letter = build(Entry(CONTROL, "g", "1-0"), "oversize", "x", {b"payload": bytes(2 * MEBIBYTE)})
    assert letter.truncated
    assert len(letter.fields[0].value) == PART_BYTES - len(b"payload")
