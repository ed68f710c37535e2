"""A replay signs only what may be believed: a forgery isn't made genuine by it."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    STREAMS,
    UNSIGNED,
    Events,
    Inbox,
    command,
    consuming,
    entries,
    envelopes,
    letters,
)
from tests.oona.dead import (
    ANN,
    BOTH,
    DEAD,
    OTHER,
    RING,
    an_hour_ago,
    dead_entry,
    everything,
    found,
    replayed,
    sealed,
)
from tests.oona.entries import compat
from tolaria_bus.oona.examining import Examiner
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.replay import Fate
from tolaria_bus.oona.trust import KeyRing, NonceWindow

HAND = '{"commandType": "PAUSE"}'


def tampered() -> dict[Any, Any]:
    fields = sealed(command("mine"))
    return {**fields, b"payload": fields[b"payload"] + b"\x1a\x06\n\x01a\x12\x01b"}


UNBELIEVED: dict[str, tuple[dict[Any, Any], str]] = {
    "not signed": (sealed(command("x"), UNSIGNED), "isn't signed"),
    "by hand": ({"json": HAND}, "isn't signed"),
    "signed with another key": (sealed(command("x"), OTHER), "none of our keys"),
    "changed on its way": (tampered(), "none of our keys"),
    "meant for another stream": (sealed(command("x"), RING, EMERGENCY), "meant the stream"),
    "an older program's": (compat(), "none of our keys"),
}


@pytest.mark.parametrize("name", UNBELIEVED)
async def test_what_is_not_believed_is_refused_and_stays(name: str, redis: Redis, redis_url: str):
    fields, says = UNBELIEVED[name]
    await redis.xadd(CONTROL, fields)
    events = Events()
    options: dict[str, Any] = {"ring": RING, "opener": Opener(RING, NonceWindow())}
    async with consuming(redis_url, Inbox(), on_event=events, **options):
        await events.wait_for("dead_letter")
    before = await everything(redis)
    (result,) = await replayed(redis, RING)
    assert (result.fate, result.code) == (Fate.REFUSED, "unbelieved")
    assert says in result.reason
    assert await everything(redis) == before


@pytest.mark.parametrize("name", UNBELIEVED)
async def test_who_vouches_for_it_signs_it_as_their_own(name: str, redis: Redis, redis_url: str):
    fields, _ = UNBELIEVED[name]
    await dead_entry(redis, fields, "signature", ring=RING)
    (result,) = await replayed(redis, RING, resign=True)
    assert result.fate is Fate.REPLAYED
    (envelope,) = await envelopes(redis, CONTROL)
    assert (envelope.source, envelope.key_id, envelope.audience) == (ANN, "k", CONTROL)
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox, ring=RING, opener=Opener(RING, NonceWindow())):
        await inbox.wait_for(1)


async def test_a_copy_of_another_entry_is_not_sealed_anew(redis: Redis, redis_url: str):
    fields = sealed(command("mine"))
    await redis.xadd(CONTROL, fields)
    await redis.xadd(CONTROL, fields)
    inbox, events = Inbox(ack=True), Events()
    options: dict[str, Any] = {"ring": RING, "opener": Opener(RING, NonceWindow())}
    async with consuming(redis_url, inbox, on_event=events, **options):
        assert (await events.wait_for("dead_letter"))["reason"] == "replay"
    (result,) = await replayed(redis, RING)
    assert (result.fate, result.code) == (Fate.REFUSED, "unbelieved")
    assert "copy" in result.reason


async def test_a_late_entry_with_a_good_signature_is_sealed_again_and_taken(
    redis: Redis, redis_url: str
):
    await redis.xadd(CONTROL, sealed(command("mine"), clock=an_hour_ago))
    events, inbox = Events(), Inbox(ack=True)
    options: dict[str, Any] = {"ring": RING, "opener": Opener(RING, NonceWindow())}
    async with consuming(redis_url, inbox, on_event=events, **options):
        assert (await events.wait_for("dead_letter"))["reason"] == "stale"
        (result,) = await replayed(redis, RING)
        (received,) = await inbox.wait_for(1)
    assert result.fate is Fate.REPLAYED
    assert received.opened.source == "operator/bob"


async def test_a_late_entry_of_a_shared_stream_may_be_a_copy_and_needs_somebody_to_vouch(
    redis: Redis,
):
    """A run knows its own commands by their ids; one that began later doesn't know this one."""
    stream = STREAMS.fleet_control
    late = sealed(command("old"), stream=stream, clock=an_hour_ago)
    await dead_entry(redis, late, "stale", stream=stream, ring=RING)
    (result,) = await replayed(redis, RING, stream=stream)
    assert (result.fate, result.code) == (Fate.REFUSED, "unbelieved")
    assert "may be a copy" in result.reason
    (result,) = await replayed(redis, RING, stream=stream, resign=True)
    assert result.fate is Fate.REPLAYED


async def test_an_entry_whose_key_was_added_meanwhile_is_sealed_again_with_the_first_key(
    redis: Redis, redis_url: str
):
    await dead_entry(redis, sealed(command("mine"), OTHER), "signature", ring=RING)
    assert (await replayed(redis, RING))[0].code == "unbelieved"
    assert (await replayed(redis, BOTH))[0].fate is Fate.REPLAYED
    (envelope,) = await envelopes(redis, CONTROL)
    assert envelope.key_id == "k"
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox, ring=BOTH, opener=Opener(BOTH, NonceWindow())):
        await inbox.wait_for(1)


async def test_a_letter_that_nobody_signed_is_not_believed_though_its_entry_is_genuine(
    redis: Redis,
):
    """Else who has seen an old command could have it sent again by writing a letter about it."""
    await dead_entry(redis, sealed(command("old"), clock=an_hour_ago), "stale", ring=UNSIGNED)
    (item,) = await found(redis, RING)
    assert item.doubt.startswith("signature:")
    assert item.letter is not None
    (result,) = await replayed(redis, RING)
    assert (result.fate, result.code) == (Fate.REFUSED, "unbelieved")
    assert (await replayed(redis, RING, resign=True))[0].fate is Fate.REPLAYED


async def test_without_a_key_nothing_that_was_signed_loses_its_signature(redis: Redis):
    await dead_entry(redis, sealed(command("mine")), "stale", ring=RING)
    for terms in ({}, {"resign": True}, {"message": HAND.encode()}):
        (result,) = await replayed(redis, UNSIGNED, **terms)
        assert (result.fate, result.code) == (Fate.REFUSED, "no_key")
    assert len(await letters(redis, ring=RING)) == 1


async def test_what_a_person_writes_instead_is_signed_as_theirs(redis: Redis, redis_url: str):
    await dead_entry(redis, {"payload": b"\xff"}, "malformed", ring=RING)
    (refused,) = await replayed(redis, RING)
    assert refused.code == "unreadable"
    await replayed(redis, RING, message=HAND.encode())
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox, ring=RING, opener=Opener(RING, NonceWindow())):
        (received,) = await inbox.wait_for(1)
    assert received.opened.source == ANN


async def test_the_mark_is_under_the_signature(redis: Redis):
    await dead_entry(redis, sealed(command("mine"), clock=an_hour_ago), "stale", ring=RING)
    await replayed(redis, RING)
    ((entry_id, fields),) = await entries(redis, CONTROL)
    opened = Opener(RING, NonceWindow()).open(CONTROL, entry_id, fields)
    assert opened.envelope.attributes["replay_of"].startswith(f"{DEAD}/")


async def test_an_older_programs_signature_is_good_where_its_secret_is_known(redis: Redis):
    await dead_entry(redis, compat(b"old"), "signature", ring=RING)
    (item,) = await found(redis, RING)
    assert item.letter is not None
    assert Examiner(RING).examine(item.letter).distrust
    assert Examiner(RING, b"old").examine(item.letter).distrust == ""
    assert Examiner(KeyRing(), b"new").examine(item.letter).distrust
