import hashlib
import time
import timeit
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.oona.entries import (
    COMPAT_SECRET,
    CONTROL,
    ENTRY,
    NOW_MS,
    OFF,
    PAUSE,
    RING,
    TELEMETRY,
    Fields,
    at,
    changed,
    compat,
    opener,
    refusal,
    sealed,
    unsigned,
)
from tolaria_bus.leyline import (
    AdaptationCommand,
    BusEnvelope,
    BusMessageType,
    MessagePriority,
    SeedState,
    TelemetryLevel,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import MAX_MESSAGE_BYTES, CodecError
from tolaria_bus.oona.envelope import (
    Opened,
    Opener,
    Refused,
    seal,
    seal_envelope,
    wrap,
)
from tolaria_bus.oona.trust import Key, KeyRing


async def test_what_is_sealed_is_opened_after_a_server(redis: Redis) -> None:
    fields = seal(
        PAUSE,
        stream=CONTROL,
        source="operator/ann",
        ring=RING,
        priority=MessagePriority.MESSAGE_PRIORITY_HIGH,
        message_id="m1",
        correlation_id="p1",
    )
    await redis.xadd(CONTROL, cast("Any", fields))
    [(entry, received)] = cast("Any", await redis.xrange(CONTROL))
    opened = opener().open(CONTROL, entry, received)
    assert opened.message == PAUSE
    assert opened.message_type == BusMessageType.BUS_MESSAGE_TYPE_ADAPTATION_COMMAND
    assert opened.payload == PAUSE.SerializeToString(deterministic=True)
    assert opened.digest == hashlib.sha256(opened.payload).digest()
    assert opened.priority == MessagePriority.MESSAGE_PRIORITY_HIGH
    assert (opened.source, opened.message_id, opened.correlation_id) == ("operator/ann", "m1", "p1")
    assert opened.envelope.audience == CONTROL
    assert opened.envelope.key_id == "k1"


def test_the_signature_is_over_exactly_the_payload_bytes() -> None:
    fields = sealed()
    assert fields.keys() == {b"payload", b"signature"}
    assert fields[b"signature"] == Key(b"0123456789abcdef").sign(fields[b"payload"])


def test_unsigned_entries_have_no_signature_and_no_key() -> None:
    fields = sealed(ring=OFF)
    assert fields.keys() == {b"payload"}
    assert opener(OFF).open(CONTROL, ENTRY, fields).envelope.key_id == ""


def opened_now(fields: Fields) -> Opened:
    return Opener(OFF, None).open(CONTROL, f"{time.time_ns() // 1_000_000}-0", fields)


def test_what_goes_without_saying_is_not_said() -> None:
    """And the reader knows it all the same: its priority, and the id that the packet has itself."""
    packet = TelemetryPacket(packet_id="o8HtQkYg.3039")
    fields = seal(packet, stream=CONTROL, source="run/r", ring=OFF, message_id=packet.packet_id)
    envelope = BusEnvelope.FromString(fields[b"payload"])
    said = {field.name for field, _ in envelope.ListFields()}
    assert said == {"message_type", "payload", "issued_at_ns", "nonce", "source", "audience"}
    opened = opened_now(fields)
    assert opened.message_id == "o8HtQkYg.3039"
    assert opened.priority == MessagePriority.MESSAGE_PRIORITY_NORMAL


def test_an_id_of_its_own_is_said() -> None:
    packet = TelemetryPacket(packet_id="p")
    fields = seal(packet, stream=CONTROL, source="run/r", ring=OFF, message_id="m")
    assert opened_now(fields).message_id == "m"


def test_the_step_metrics_of_a_run_are_small() -> None:
    """The goal of 280 bytes, names of the entry's fields included."""
    ring = KeyRing({"k1": b"0123456789abcdef"})
    packet = TelemetryPacket(
        packet_id="o8HtQkYg.3039",
        source_subsystem="tolaria",
        level=TelemetryLevel.TELEMETRY_LEVEL_INFO,
        training_run_id="digits",
        global_step=12_345,
        epoch=274,
        timeline=1,
    )
    packet.timestamp.FromNanoseconds(NOW_MS * 1_000_000 + 123_456)
    packet.metrics.add(name="tolaria.training.loss", value=0.0731)
    packet.metrics.add(name="tolaria.training.steps_per_second", value=812.4, unit="1/s")
    entry = seal(
        packet,
        stream="oona:{digits}:telemetry",
        source="run/digits",
        ring=ring,
        message_id=packet.packet_id,
    )
    assert sum(len(name) + len(value) for name, value in entry.items()) < 280


def test_an_envelope_sealed_again_keeps_its_message_id_and_gets_a_new_nonce() -> None:
    envelope = wrap(PAUSE, source="run/digits")
    first = seal_envelope(envelope, stream=CONTROL, ring=RING, clock=at(NOW_MS))
    second = seal_envelope(envelope, stream=CONTROL, ring=RING, clock=at(NOW_MS + 90_000))
    reader = opener()
    one = reader.open(CONTROL, ENTRY, first)
    two = reader.open(CONTROL, f"{NOW_MS + 90_000}-0", second)
    assert one.message_id == two.message_id != ""
    assert one.envelope.nonce != two.envelope.nonce
    assert two.issued_at_ns - one.issued_at_ns == 90 * 10**9


def test_an_old_key_still_opens_what_it_signed() -> None:
    opened = opener().open(CONTROL, ENTRY, sealed(ring=KeyRing({"k0": b"fedcba9876543210"})))
    assert opened.envelope.key_id == "k0"


def test_a_typical_packet_is_small_and_quick() -> None:
    packet = TelemetryPacket(
        packet_id="o8HtQkYg7PZgvdSE",
        source_subsystem="tolaria",
        level=TelemetryLevel.TELEMETRY_LEVEL_INFO,
        priority=MessagePriority.MESSAGE_PRIORITY_NORMAL,
        global_step=120_000,
        epoch=12,
        timeline=1,
    )
    packet.timestamp.FromNanoseconds(time.time_ns())
    packet.metrics.add(name="tolaria.loss", value=0.25)
    packet.metrics.add(name="tolaria.step_ms", value=12.25, unit="ms")
    fields = sealed(packet, stream=TELEMETRY)
    assert sum(len(name) + len(value) for name, value in fields.items()) < 280
    best = min(timeit.repeat(lambda: sealed(packet, stream=TELEMETRY), number=200, repeat=5)) / 200
    assert best < 80e-6


@pytest.mark.parametrize("signature", [None, b"", b"AAAA", b"\xff" * 44, Key(b"x").sign(b"x")])
def test_a_bad_or_missing_signature_is_refused(signature: bytes | None) -> None:
    fields = sealed()
    del fields[b"signature"]
    if signature is not None:
        fields[b"signature"] = signature
    assert refusal(fields).reason == "signature"


def test_a_foreign_key_is_refused_by_name() -> None:
    refused = refusal(sealed(ring=KeyRing({"theirs": b"0123456789abcdef"})))
    assert (refused.reason, refused.detail) == (
        "signature",
        "key_id 'theirs' is not in the key ring",
    )


def test_a_key_id_that_names_another_of_our_keys_is_refused() -> None:
    assert refusal(changed(sealed(), key_id="k0")).reason == "signature"


def test_one_changed_bit_is_refused() -> None:
    fields = sealed()
    payload = bytearray(fields[b"payload"])
    payload[-1] ^= 1
    assert refusal({**fields, b"payload": bytes(payload)}).reason == "signature"


@pytest.mark.parametrize(
    ("delay_ms", "reason"),
    [(60_000, None), (60_001, "stale"), (-5_000, None), (-5_001, "future"), (10**9, "stale")],
)
def test_freshness_is_the_senders_delay_before_the_server_took_it(
    delay_ms: int, reason: str | None
) -> None:
    fields = sealed(ms=NOW_MS - delay_ms)
    if reason is None:
        assert opener().open(CONTROL, ENTRY, fields)
    else:
        assert refusal(fields).reason == reason


def test_waiting_in_the_stream_makes_nothing_stale() -> None:
    long_ago = 1_000_000_000_000
    later = opener(server_now_ms=lambda: NOW_MS)
    assert later.open(CONTROL, f"{long_ago}-0", sealed(ms=long_ago))


def test_an_envelope_without_a_time_is_stale() -> None:
    assert refusal(changed(sealed(), issued_at_ns=None)).reason == "stale"


def test_an_entry_id_chosen_ahead_of_the_server_is_refused() -> None:
    ahead = NOW_MS + 5_001
    refused = refusal(sealed(ms=ahead), entry=f"{ahead}-0", server_now_ms=lambda: NOW_MS)
    assert refused.reason == "future"
    near = opener(server_now_ms=lambda: NOW_MS)
    assert near.open(CONTROL, f"{NOW_MS + 5_000}-0", sealed())


def test_a_redelivery_passes_and_a_replay_does_not() -> None:
    reader, fields = opener(), sealed()
    reader.open(CONTROL, ENTRY, fields)
    reader.open(CONTROL, ENTRY, fields)
    with pytest.raises(Refused, match=r"^replay"):
        reader.open(CONTROL, f"{NOW_MS}-1", fields)


def test_a_refused_entry_uses_no_nonce_up() -> None:
    reader, fields = opener(), sealed()
    with pytest.raises(Refused, match=r"^stale"):
        reader.open(CONTROL, f"{NOW_MS + 70_000}-0", fields)
    assert reader.open(CONTROL, ENTRY, fields)


def test_a_reader_that_only_shows_needs_no_window() -> None:
    reader, fields = Opener(RING, None), sealed()
    assert reader.open(CONTROL, ENTRY, fields)
    assert reader.open(CONTROL, f"{NOW_MS}-1", fields)


@pytest.mark.parametrize("ring", [RING, OFF])
def test_an_entry_for_another_stream_is_refused(ring: KeyRing) -> None:
    fields = sealed(stream="oona:{other}:control", ring=ring)
    assert refusal(fields, ring=ring).reason == "audience"


def test_a_signed_envelope_must_name_its_stream() -> None:
    assert refusal(changed(sealed(), audience=None)).reason == "audience"


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_nonce_of_another_length_is_refused(length: int) -> None:
    refused = refusal(changed(sealed(), nonce=bytes(length)))
    assert refused.detail == f"nonce has {length} bytes, must have 16"


def test_without_signing_an_envelope_of_three_fields_is_taken() -> None:
    opened = opener(OFF).open(CONTROL, ENTRY, unsigned())
    assert opened.message == PAUSE
    assert opened.priority == MessagePriority.MESSAGE_PRIORITY_NORMAL
    assert opened.issued_at_ns == NOW_MS * 1_000_000


def test_without_signing_a_time_that_is_given_still_counts() -> None:
    fields = unsigned(issued_at_ns=(NOW_MS - 61_000) * 1_000_000)
    assert refusal(fields, ring=OFF).reason == "stale"


def test_without_signing_the_same_envelope_in_two_entries_is_left_to_the_command_id() -> None:
    reader, fields = opener(OFF), sealed(ring=OFF)
    first = reader.open(CONTROL, ENTRY, fields)
    assert reader.open(CONTROL, f"{NOW_MS}-1", fields).digest == first.digest


def test_envelopes_of_older_programs_are_taken_where_that_is_on() -> None:
    reader = opener(compat_secret=COMPAT_SECRET)
    assert reader.open(CONTROL, ENTRY, compat()).message == PAUSE
    assert reader.open(CONTROL, ENTRY, sealed()).message == PAUSE
    assert opener(OFF, compat_secret=COMPAT_SECRET).open(CONTROL, ENTRY, compat()).message == PAUSE


def test_envelopes_of_older_programs_are_refused_where_that_is_off() -> None:
    assert refusal(compat()).detail == "key_id is empty: envelopes of fields 1-3 are off"


def test_an_older_programs_secret_signs_nothing_but_fields_one_to_three() -> None:
    assert refusal(compat(b"guessed"), compat_secret=COMPAT_SECRET).reason == "signature"
    assert refusal(compat(priority=2), compat_secret=COMPAT_SECRET).reason == "signature"
    assert refusal(compat(key_id="k1"), compat_secret=COMPAT_SECRET).reason == "signature"
    assert refusal(unsigned(), ring=OFF, compat_secret=COMPAT_SECRET).reason == "signature"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (None, "malformed"),
        ({}, "malformed"),
        ({b"other": b"1"}, "malformed"),
        ({b"payload": b"\xff\xff"}, "malformed"),
        ({b"payload": b""}, "type"),
        (unsigned(message_type=0), "type"),
        (unsigned(message_type=99), "type"),
        (unsigned(payload=b"\xff"), "malformed"),
        (unsigned(priority=77), "malformed"),
        (unsigned(message=AdaptationCommand(command_id="c", command_type=55)), "malformed"),  # type: ignore[arg-type]
        (unsigned(message=AdaptationCommand(command_type=5)), "malformed"),  # type: ignore[arg-type]
        ({b"payload": bytes(MAX_MESSAGE_BYTES + 1)}, "oversize"),
        ({b"json": b"{"}, "malformed"),
        ({b"json": b"[]"}, "malformed"),
        ({b"json": b'{"a":"' + bytes(MAX_MESSAGE_BYTES) + b'"}'}, "oversize"),
    ],
)
def test_what_cannot_be_read_is_refused(fields: Fields | None, reason: str) -> None:
    assert refusal(fields, ring=OFF).reason == reason


@pytest.mark.parametrize("entry", ["", "0", "a-b", "1-2-3", f"{2**64}-0"])
def test_an_entry_id_that_is_none_is_refused(entry: str) -> None:
    assert refusal(sealed(), entry=entry).reason == "malformed"


def test_too_large_a_message_is_not_sealed() -> None:
    with pytest.raises(CodecError, match=r"^oversize"):
        sealed(AdaptationCommand(issued_by="x" * MAX_MESSAGE_BYTES))
    with pytest.raises(CodecError, match=r"^type"):
        sealed(SeedState())
