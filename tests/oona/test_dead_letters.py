"""An entry that can't be used is kept with its reason, once, and finished in the same step."""

import time
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    GROUP,
    STREAMS,
    UNSIGNED,
    Events,
    Inbox,
    command,
    consuming,
    entries,
    finished,
    letters,
    metric,
    pending,
    send,
    taken_entry,
)
from tolaria_bus.leyline import DeadLetter
from tolaria_bus.leyline.codec import MAX_MESSAGE_BYTES, encode
from tolaria_bus.oona.dead_letters import KEPT_BYTES, begun_key, build, bury, read
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.scripts import Entry
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.trust import KeyRing, NonceWindow

RING = KeyRing.parse("k:c2VjcmV0LXNlY3JldA==")
OTHER = KeyRing.parse("k:b3RoZXItc2VjcmV0ISE=")


def sealed(
    ring: KeyRing = RING, stream: str = CONTROL, message: Message | None = None, **options: Any
) -> dict[Any, Any]:
    return dict(seal(message or command(), stream=stream, source="test", ring=ring, **options))


def an_hour_ago() -> int:
    return time.time_ns() - 3_600_000_000_000


def in_an_hour() -> int:
    return time.time_ns() + 3_600_000_000_000


def bad_entries() -> dict[str, tuple[dict[Any, Any], str]]:
    """By what is wrong with them: what they hold, and the reason they get. Sealed just now."""
    return {
        "rubbish": ({"payload": b"\xff\xff\xff"}, "malformed"),
        "no fields that mean anything": ({"hello": "world"}, "malformed"),
        "too large": ({"payload": bytes(MAX_MESSAGE_BYTES + 1)}, "oversize"),
        "of ten megabytes": ({"payload": bytes(10 * MAX_MESSAGE_BYTES)}, "oversize"),
        "unsigned": (sealed(UNSIGNED), "signature"),
        "signed with another secret": (sealed(OTHER), "signature"),
        "by hand where signing is on": ({"json": '{"commandType": "PAUSE"}'}, "signature"),
        "for another stream": (sealed(stream=EMERGENCY), "audience"),
        "sent too late": (sealed(clock=an_hour_ago), "stale"),
        "from the future": (sealed(clock=in_an_hour), "future"),
        "another kind of message": (sealed(message=metric()), "type"),
    }


@pytest.mark.parametrize("bad", bad_entries())
async def test_a_bad_entry_is_a_dead_letter_with_its_reason(bad: str, redis: Redis, redis_url: str):
    fields, reason = bad_entries()[bad]
    entry_id: Any = await redis.xadd(CONTROL, fields)
    good = await send(redis, CONTROL, command("good"), RING)
    inbox, events = Inbox(ack=True), Events()
    async with consuming(
        redis_url, inbox, ring=RING, on_event=events, opener=Opener(RING, NonceWindow(None))
    ) as running:
        await inbox.wait_for(1)
        await finished(redis)
        assert running.dead == {reason: 1}
    assert [received.entry_id for received in inbox.received] == [good]
    assert await entries(redis, CONTROL) == []
    (letter,) = await letters(redis, ring=RING)
    assert (letter.reason, letter.stream, letter.entry_id) == (reason, CONTROL, entry_id.decode())
    assert (letter.group, letter.consumer, letter.deliveries) == (GROUP, "me", 1)
    assert letter.detail
    assert letter.detail == events.of("dead_letter")[0]["detail"]
    if reason != "oversize":
        kept = {bytes(field.name): bytes(field.value) for field in letter.fields}
        assert kept == {
            key.encode() if isinstance(key, str) else key: (
                value.encode() if isinstance(value, str) else value
            )
            for key, value in fields.items()
        }
        assert not letter.truncated


async def test_a_replayed_entry_is_refused_and_a_redelivered_one_isnt(redis: Redis, redis_url: str):
    nonces = NonceWindow(None)
    fields = sealed()
    await redis.xadd(CONTROL, fields)
    inbox = Inbox()
    options: dict[str, Any] = {"ring": RING, "opener": Opener(RING, nonces)}
    async with consuming(redis_url, inbox, **options):
        await inbox.wait_for(1)
    again, events = Inbox(ack=True), Events()
    await redis.xadd(CONTROL, fields)
    async with consuming(redis_url, again, on_event=events, **options):
        await again.wait_for(1)
        assert (await events.wait_for("dead_letter"))["reason"] == "replay"
    assert again.received[0].redelivered
    assert len(again.received) == 1


async def test_an_entry_of_a_shared_stream_gets_one_letter_from_many_groups(
    redis: Redis, redis_url: str
):
    await redis.xadd(STREAMS.fleet_control, {"payload": b"rubbish"})
    for group in ("tolaria.a", "tolaria.b"):
        events = Events()
        async with consuming(
            redis_url,
            Inbox(),
            stream=STREAMS.fleet_control,
            group=group,
            delete=False,
            on_event=events,
        ):
            await events.wait_for("dead_letter")
        assert await pending(redis, STREAMS.fleet_control, group) == 0
    assert await redis.xlen(STREAMS.fleet_control) == 1
    assert await redis.keys("*dead") == [b"{oona:control}:dead"]
    assert len(await letters(redis, STREAMS.fleet_control)) == 1


async def test_a_handler_can_give_an_entry_up(redis: Redis, redis_url: str):
    await send(redis, CONTROL, command())
    inbox = Inbox()
    async with consuming(redis_url, inbox) as running:
        (received,) = await inbox.wait_for(1)
        await received.dead_letter("fatal", "three attempts without a result")
        assert await pending(redis, CONTROL, GROUP) == 0
        assert running.dead == {"fatal": 1}
        assert len(running.in_flight) == 0
    (letter,) = await letters(redis)
    assert (letter.reason, letter.detail) == ("fatal", "three attempts without a result")
    assert dict(received.fields) == {bytes(f.name): bytes(f.value) for f in letter.fields}


async def test_letter_and_acknowledgement_are_one_step(redis: Redis):
    """Where the letter can't be written the entry stays, and the next try does both."""
    entry_id = await taken_entry(redis, CONTROL, GROUP)
    letter = build(Entry(CONTROL, GROUP, entry_id), "malformed", "it is", {b"payload": b"x"})
    await redis.set(STREAMS.dead("r"), "not a stream")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await bury(redis, letter, ring=UNSIGNED, delete=True)
    assert await pending(redis, CONTROL, GROUP) == 1
    assert await redis.xlen(CONTROL) == 1
    await redis.delete(STREAMS.dead("r"))
    assert await bury(redis, letter, ring=UNSIGNED, delete=True)
    assert await bury(redis, letter, ring=UNSIGNED, delete=True) == ""
    assert await letters(redis) == [letter]
    assert await pending(redis, CONTROL, GROUP) == 0


async def test_letters_are_read_in_pages_and_from_a_place_on(redis: Redis):
    dead = STREAMS.dead("r")
    for n in range(250):
        await bury(
            redis,
            build(Entry(CONTROL, GROUP, f"{n + 1}-0"), "malformed", str(n), {}),
            ring=RING,
            delete=False,
        )
    await redis.xadd(dead, {"payload": b"rubbish"})
    await send(redis, dead, metric(), RING)
    found = [item async for item in read(redis, dead, Opener(RING, None))]
    assert [item.letter.detail for item in found[:250] if item.letter] == [
        str(n) for n in range(250)
    ]
    assert [item.problem.partition(":")[0] for item in found[250:]] == ["malformed", "type"]
    after = [
        item async for item in read(redis, dead, Opener(RING, None), after=found[248].entry_id)
    ]
    assert after == found[249:]


@given(
    fields=st.dictionaries(st.binary(max_size=40), st.integers(0, 2 << 20), max_size=4),
    detail=st.text(st.characters(), max_size=50),
    entry_id=st.sampled_from(["1-0", "0-1", "18446744073709551615-5", "rubbish"]),
)
def test_a_letter_about_anything_fits_into_a_message(
    fields: dict[bytes, int], detail: str, entry_id: str
):
    original = {name: bytes(size) for name, size in fields.items()}
    letter = build(Entry(CONTROL, GROUP, entry_id), "malformed", detail * 200, original)
    assert len(encode(letter)) < MAX_MESSAGE_BYTES
    kept = {bytes(field.name): bytes(field.value) for field in letter.fields}
    total = sum(len(name) + len(value) for name, value in original.items())
    assert letter.truncated == (total > KEPT_BYTES)
    if not letter.truncated:
        assert kept == original
    assert DeadLetter.FromString(encode(letter)) == letter


def test_a_letter_about_an_entry_of_very_many_fields_fits_into_a_message():
    original = {b"%d" % number: b"" for number in range(200_000)}
    letter = build(Entry(CONTROL, GROUP, "1-0"), "malformed", "x", original)
    assert len(encode(letter)) < MAX_MESSAGE_BYTES
    assert letter.truncated
    kept = {bytes(field.name): bytes(field.value) for field in letter.fields}
    assert kept.items() <= original.items()


def test_counts_of_begun_handlings_are_in_the_slot_of_their_stream():
    assert begun_key("oona:{r}:control", "g") == "oona:{r}:control:begun:g"
    assert begun_key("oona:control", "g") == "{oona:control}:begun:g"
