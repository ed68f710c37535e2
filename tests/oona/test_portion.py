"""What is read at once, and held at once, is bounded in bytes and not only in entries."""

import gc
import os
from itertools import pairwise
from typing import Any

import anyio
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.oona.bus import CONTROL, SOON, Events, Inbox, command, consuming, finished, send, until
from tolaria_bus.leyline.codec import MAX_MESSAGE_BYTES
from tolaria_bus.oona.opening import Refused
from tolaria_bus.oona.portion import BATCH, READ_BYTES, Portion
from tolaria_bus.oona.reading import Delivered
from tolaria_bus.oona.received import Received
from tolaria_bus.oona.rounds import IN_HAND_BYTES

MEBIBYTE = 1 << 20


def read_of(count: int, size: int) -> list[Delivered]:
    return [Delivered(f"{n}-0", {}, 1, False, size) for n in range(count)]


def test_reads_grow_while_entries_are_small():
    portion = Portion()
    asked = []
    for _ in range(12):
        asked.append(portion.entries)
        portion.came(read_of(portion.entries, 300))
    assert asked[0] <= 16
    assert all(after <= 2 * before for before, after in pairwise(asked))
    assert asked[-1] == BATCH


def test_the_read_after_one_of_large_entries_is_small_at_once():
    portion = Portion()
    for _ in range(12):
        portion.came(read_of(portion.entries, 300))
    portion.came(read_of(BATCH, MEBIBYTE))
    assert portion.entries == READ_BYTES // MEBIBYTE
    portion.came(read_of(8, 100 * MEBIBYTE))
    assert portion.entries == 1


def test_nothing_is_learnt_from_an_empty_read():
    portion = Portion()
    portion.came([])
    assert portion.entries == Portion().entries


@given(st.lists(st.integers(0, 2 * MEBIBYTE), min_size=1, max_size=30))
def test_entries_like_the_last_ones_bring_no_more_than_the_limit(sizes: list[int]):
    portion = Portion()
    for size in sizes:
        portion.came(read_of(portion.entries, size))
        assert 1 <= portion.entries <= BATCH
        assert portion.entries * size <= max(READ_BYTES, size)


async def test_a_handler_that_keeps_large_entries_isnt_given_more_than_fits(
    redis: Redis, redis_url: str
):
    kept: list[Received] = []

    async def keep(received: Received) -> None:
        kept.append(received)

    sent = 80
    for number in range(sent):
        padding = command(f"c-{number}")
        padding.annotations["reason"] = os.urandom(450_000).hex()
        await send(redis, CONTROL, padding)
    async with consuming(redis_url, keep) as running:
        most = 0
        taken = 0
        with anyio.fail_after(SOON):
            while taken < sent:
                await anyio.sleep(0.02)
                before = running.in_flight.large_bytes
                most = max(most, before)
                # It goes on with what leaves, and not before.
                if before >= IN_HAND_BYTES or taken + len(kept) == sent:
                    taken += len(kept)
                    while kept:
                        kept.pop().ack_soon()
        await finished(redis)
        assert running.in_flight.large_bytes == 0
    assert IN_HAND_BYTES <= most <= IN_HAND_BYTES + 3 * READ_BYTES


async def test_what_was_refused_is_let_go_at_once(redis: Redis, redis_url: str):
    """By itself, and not when the garbage collector comes: it may be megabytes."""
    rubbish: list[dict[Any, Any]] = [
        {"payload": b"\xff\xff"},
        {"payload": bytes(MAX_MESSAGE_BYTES + 1)},
        {"json": b"{"},
        {"hello": "world"},
    ]
    events = Events()
    async with consuming(redis_url, Inbox(), on_event=events) as running:
        gc.collect()
        gc.disable()
        try:
            for fields in rubbish * 3:
                await redis.xadd(CONTROL, fields)
            await until(lambda: running.dead.total() == 12)
            await finished(redis)
            assert not [one for one in gc.get_objects() if type(one) in (Delivered, Refused)]
        finally:
            gc.enable()


async def test_small_entries_count_by_their_number_only(redis: Redis, redis_url: str):
    inbox = Inbox()
    await send(redis, CONTROL, command())
    async with consuming(redis_url, inbox) as running:
        await inbox.wait_for(1)
        assert running.in_flight.large_bytes == 0
