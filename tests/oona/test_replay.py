"""A dead letter's entry goes back to its stream, once, with its command id."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import anyio
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
    envelopes,
    finished,
    letters,
    messages,
)
from tests.oona.dead import ANN, DEAD, an_hour_ago, dead_entry, everything, found, replayed, sealed
from tolaria_bus.leyline import AdaptationCommand, EmergencySignal, MessagePriority
from tolaria_bus.leyline.codec import MAX_MESSAGE_BYTES
from tolaria_bus.oona.by_hand import derived_id
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.replay import Fate
from tolaria_bus.oona.resealing import Terms
from tolaria_bus.oona.resent import is_resent

HAND = '{"commandType": "PAUSE"}'


def fates(results: list[Any]) -> list[Fate]:
    return [result.fate for result in results]


async def test_a_replayed_entry_is_taken_and_its_letter_is_gone(redis: Redis, redis_url: str):
    original = sealed(command("mine"), UNSIGNED)
    await dead_entry(redis, original, "fatal")
    (result,) = await replayed(redis)
    assert result.fate is Fate.REPLAYED
    assert await redis.xlen(DEAD) == 0
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox):
        (received,) = await inbox.wait_for(1)
        await finished(redis)
    assert received.entry_id == result.entry_id
    assert received.opened.message == AdaptationCommand.FromString(received.opened.payload)
    assert inbox.ids() == ["mine"]
    assert received.opened.source == "operator/bob"
    assert is_resent(received.opened.envelope, CONTROL)


async def digest(redis: Redis) -> bytes:
    """What a command id is bound to, of the only entry."""
    ((entry_id, fields),) = await entries(redis, CONTROL)
    return Opener(UNSIGNED, None).open(CONTROL, entry_id, fields).digest


async def test_the_digest_of_a_replay_is_the_same(redis: Redis):
    """A command id is bound to it: else a replay would be a conflict and no DUPLICATE."""
    await redis.xadd(CONTROL, sealed(command("mine"), UNSIGNED))
    before = await digest(redis)
    await redis.delete(CONTROL)
    await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    await replayed(redis)
    assert await digest(redis) == before


async def test_an_entry_by_hand_keeps_the_id_that_its_first_entry_gave_it(redis: Redis):
    entry_id = await dead_entry(redis, {"json": HAND}, "fatal")
    first = Opener(UNSIGNED, None).open(CONTROL, entry_id, {b"json": HAND.encode()})
    await replayed(redis)
    (message,) = await messages(redis, CONTROL, AdaptationCommand)
    assert message.command_id == derived_id(CONTROL, entry_id)
    assert await digest(redis) == first.digest


async def test_a_command_without_an_id_gets_one_that_is_the_same_at_every_replay(redis: Redis):
    entry_id = await dead_entry(redis, sealed(command(""), UNSIGNED))
    await replayed(redis)
    (message,) = await messages(redis, CONTROL, AdaptationCommand)
    assert message.command_id == derived_id(CONTROL, entry_id)


async def test_a_signal_without_an_id_is_known_by_its_first_entry(redis: Redis):
    signal = EmergencySignal(reason="hot", run_id="r")
    entry_id = await dead_entry(
        redis, sealed(signal, UNSIGNED, EMERGENCY), "fatal", stream=EMERGENCY
    )
    await replayed(redis, stream=EMERGENCY)
    again = (await messages(redis, EMERGENCY, EmergencySignal))[1]
    assert again.attributes["signal_id"] == f"{EMERGENCY}/{entry_id}"


async def test_what_dies_again_gets_a_letter_of_its_own_that_counts_the_replays(
    redis: Redis, redis_url: str
):
    await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    for times in (1, 2):
        (result,) = await replayed(redis)
        inbox, events = Inbox(), Events()
        async with consuming(redis_url, inbox, on_event=events):
            (received,) = await inbox.wait_for(1)
            await received.dead_letter("fatal", "again")
            await events.wait_for("dead_letter")
        (letter,) = await letters(redis)
        assert letter.entry_id == result.entry_id
        (item,) = await found(redis)
        assert item.contents is not None
        assert item.contents.envelope is not None
        assert item.contents.envelope.attributes["replays"] == str(times)
        assert item.contents.envelope.attributes["replayed_by"] == ANN


async def test_of_two_who_replay_the_same_letters_one_finds_each_gone(redis: Redis):
    for number in range(40):
        await dead_entry(redis, sealed(command(str(number)), UNSIGNED), "fatal")
    results: list[Any] = []

    async def one() -> None:
        results.extend(await replayed(redis))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
    assert fates(results).count(Fate.REPLAYED) == 40
    ids = [item.command_id for item in await messages(redis, CONTROL, AdaptationCommand)]
    assert sorted(ids, key=int) == [str(number) for number in range(40)]
    assert await redis.xlen(DEAD) == 0


async def test_where_the_entry_cannot_be_added_the_letter_stays(redis: Redis):
    await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    await redis.delete(CONTROL)
    await redis.set(CONTROL, "no stream")
    (result,) = await replayed(redis)
    assert (result.fate, result.code) == (Fate.REFUSED, "server")
    assert "WRONGTYPE" in result.reason
    assert await redis.xlen(DEAD) == 1


async def test_a_dry_run_says_what_would_be_done_and_changes_nothing(redis: Redis):
    await dead_entry(redis, sealed(command("mine"), UNSIGNED), "fatal")
    await dead_entry(redis, sealed(command("cut"), UNSIGNED) | {b"x": bytes(MAX_MESSAGE_BYTES)})
    before = await everything(redis)
    results = await replayed(redis, dry_run=True)
    assert fates(results) == [Fate.WOULD_REPLAY, Fate.REFUSED]
    assert await everything(redis) == before


async def test_a_truncated_letter_is_not_replayed_but_can_be_mended(redis: Redis):
    await dead_entry(redis, {"json": b" " * MAX_MESSAGE_BYTES + b"x"}, "oversize")
    (result,) = await replayed(redis)
    assert (result.fate, result.code) == (Fate.REFUSED, "truncated")
    assert fates(await replayed(redis, message=HAND.encode())) == [Fate.REPLAYED]
    (message,) = await messages(redis, CONTROL, AdaptationCommand)
    assert message.command_id


@pytest.mark.parametrize(
    ("written", "command_id"),
    [
        ('{"commandType": "PAUS", "commandId": "mine"}', "mine"),
        ("{", None),
        ('{"commandType": "PAUS"}', None),
    ],
)
async def test_a_mended_message_keeps_the_id_of_what_it_replaces(
    redis: Redis, redis_url: str, written: str, command_id: str | None
):
    await redis.xadd(CONTROL, {"json": written})
    events, inbox = Events(), Inbox(ack=True)
    async with consuming(redis_url, inbox, on_event=events):
        dead = await events.wait_for("dead_letter")
        await replayed(redis, message=HAND.encode())
        (received,) = await inbox.wait_for(1)
    assert inbox.ids() == [command_id or derived_id(CONTROL, dead["entry_id"])]
    assert received.opened.source == ANN


async def test_a_bad_mend_is_refused_naming_the_field(redis: Redis):
    await dead_entry(redis, {"json": "{"})
    (result,) = await replayed(redis, message=b'{"commandTipe": "PAUSE"}')
    assert (result.fate, result.code) == (Fate.REFUSED, "malformed")
    assert "commandTipe" in result.reason
    assert await redis.xlen(DEAD) == 1


async def test_where_signing_is_off_what_cannot_be_read_goes_out_as_it_was(redis: Redis):
    await dead_entry(redis, {"payload": b"\xff", "hello": "world"})
    await replayed(redis)
    assert [fields for _, fields in await entries(redis, CONTROL)] == [
        {b"payload": b"\xff", b"hello": b"world"}
    ]


async def test_a_new_deadline_counts_from_the_replay(redis: Redis):
    late = command("mine")
    late.execution_deadline_ms = 5
    late.issued_at.FromNanoseconds(an_hour_ago())
    await dead_entry(redis, sealed(late, UNSIGNED), "fatal")
    await replayed(redis, deadline=timedelta(seconds=2), clock=lambda: 1_800_000_000_000_000_000)
    (message,) = await messages(redis, CONTROL, AdaptationCommand)
    assert message.execution_deadline_ms == 2000
    assert message.issued_at.ToNanoseconds() == 1_800_000_000_000_000_000


async def test_a_deadline_goes_on_from_when_the_command_was_first_sent(redis: Redis):
    late = command("mine")
    late.execution_deadline_ms = 5
    sent = an_hour_ago()
    await dead_entry(redis, sealed(late, UNSIGNED, clock=lambda: sent), "stale")
    await replayed(redis)
    (message,) = await messages(redis, CONTROL, AdaptationCommand)
    assert message.issued_at.ToNanoseconds() == sent


async def test_only_a_command_can_be_given_a_deadline(redis: Redis):
    signal = EmergencySignal(reason="hot", run_id="r")
    await dead_entry(redis, sealed(signal, UNSIGNED, EMERGENCY), "fatal", stream=EMERGENCY)
    (result,) = await replayed(redis, stream=EMERGENCY, deadline=timedelta(seconds=2))
    assert (result.fate, result.code) == (Fate.REFUSED, "no_deadline")


@pytest.mark.parametrize("seconds", [0, -1, 0.0001, 2**32])
def test_a_deadline_out_of_range_is_refused(seconds: float):
    with pytest.raises(ValueError, match="deadline"):
        Terms(ANN, deadline=timedelta(seconds=seconds))


async def test_a_letter_about_a_stream_elsewhere_is_not_replayed(redis: Redis):
    """Else a letter could have anything written anywhere."""
    entry = sealed(command("mine"), UNSIGNED, "oona:{other}:control")
    await dead_entry(redis, entry, "fatal", stream="oona:{other}:control")
    ((_, fields),) = await entries(redis, "oona:{other}:dead")
    envelope = dict(fields)
    await redis.xadd(DEAD, envelope)  # type: ignore[arg-type]
    (result,) = await replayed(redis)
    # The letter's own envelope was sealed for the other stream.
    assert (result.fate, result.code) == (Fate.REFUSED, "unreadable")
    letter = (await letters(redis, "oona:{other}:control"))[0]
    await redis.delete(DEAD)
    await redis.xadd(DEAD, sealed(letter, UNSIGNED, DEAD))
    (result,) = await replayed(redis)
    assert (result.fate, result.code) == (Fate.REFUSED, "foreign")


async def test_a_replay_of_a_runs_letters_is_told_on_its_telemetry(redis: Redis):
    await dead_entry(redis, sealed(command("a"), UNSIGNED), "fatal")
    await dead_entry(redis, sealed(command("b"), UNSIGNED), "stale")
    await replayed(redis)
    (packet,) = await messages(redis, TELEMETRY)
    (event,) = packet.events
    assert event.event_id == "dead_letters_replayed"
    assert event.attributes["by"] == ANN
    assert event.attributes["count"] == "2"
    assert "fatal 1, stale 1" in event.description


async def test_a_replay_of_shared_letters_is_an_alert(redis: Redis):
    stream = STREAMS.fleet_control
    await dead_entry(redis, sealed(command("a"), UNSIGNED, stream), "fatal", stream=stream)
    assert fates(await replayed(redis, stream=stream)) == [Fate.REPLAYED]
    (envelope,) = await envelopes(redis, EMERGENCY)
    assert envelope.priority == MessagePriority.MESSAGE_PRIORITY_HIGH
    assert envelope.source == ANN


async def test_the_mark_has_to_name_a_letter_of_the_same_stream(redis: Redis):
    await dead_entry(redis, sealed(command("a"), UNSIGNED), "fatal")
    await replayed(redis)
    (envelope,) = await envelopes(redis, CONTROL)
    assert is_resent(envelope, CONTROL)
    assert not is_resent(envelope, STREAMS.fleet_control)
    assert not is_resent(envelope, "oona:{other}:control")
    for value in ("", "yes", DEAD, f"{DEAD}/", f"{DEAD}/x"):
        envelope.attributes["replay_of"] = value
        assert not is_resent(envelope, CONTROL)


async def test_a_replay_is_fresh_however_long_it_was_dead(redis: Redis, redis_url: str):
    before = time.time_ns()
    await dead_entry(redis, sealed(command("a"), UNSIGNED, clock=an_hour_ago), "stale")
    await replayed(redis)
    (envelope,) = await envelopes(redis, CONTROL)
    assert envelope.issued_at_ns >= before
    inbox = Inbox(ack=True)
    async with consuming(redis_url, inbox):
        await inbox.wait_for(1)
