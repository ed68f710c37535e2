import base64
import hashlib
from typing import Any

import pytest

from tests.oona.entries import (
    COMPAT_SECRET,
    CONTROL,
    EMERGENCY,
    ENTRY,
    NOW_MS,
    OFF,
    TELEMETRY,
    opener,
    refusal,
)
from tolaria_bus.leyline import (
    AdaptationCommand,
    BusMessageType,
    CommandType,
    EmergencyLevel,
    EmergencySignal,
    TelemetryPacket,
)
from tolaria_bus.oona.envelope import (
    Opened,
    Refused,
    derived_id,
)

JSON = b'{"commandType":"COMMAND_PAUSE"}'


def by_hand(text: bytes, stream: str = CONTROL, entry: str = ENTRY, **options: Any) -> Opened:
    return opener(OFF).open(stream, entry, {b"json": text}, **options)


def test_a_command_by_hand_gets_its_id_and_time_from_the_entry() -> None:
    opened = by_hand(JSON)
    command = opened.message
    assert isinstance(command, AdaptationCommand)
    assert command.command_type == CommandType.COMMAND_PAUSE
    assert command.command_id == opened.message_id == derived_id(CONTROL, ENTRY)
    assert command.issued_at.ToMilliseconds() == NOW_MS
    assert AdaptationCommand.FromString(opened.payload) == command


def test_ids_differ_by_entry_and_by_stream_and_not_by_delivery() -> None:
    ids = {
        derived_id(CONTROL, ENTRY),
        derived_id(CONTROL, f"{NOW_MS}-1"),
        derived_id(EMERGENCY, ENTRY),
    }
    assert len(ids) == 3
    assert by_hand(JSON).message_id == by_hand(JSON).message_id
    assert (
        derived_id("oona:{digits}:control", "1-0")
        == hashlib.sha256(b"oona:{digits}:control\n1-0").hexdigest()[:32]
    )


def test_what_a_person_gives_is_kept() -> None:
    opened = by_hand(
        b'{"command_type":"pause","command_id":"mine","issued_by":"ann",'
        b'"issuedAt":"2020-01-01T00:00:00Z"}'
    )
    assert isinstance(opened.message, AdaptationCommand)
    assert opened.message.command_id == "mine"
    assert opened.message.issued_at.seconds == 1_577_836_800
    assert opened.source == "ann"


def test_the_same_command_by_hand_twice_has_the_same_digest() -> None:
    text = b'{"commandType":"PAUSE","commandId":"mine"}'
    first, second = by_hand(text), by_hand(text, entry=f"{NOW_MS + 9}-0")
    assert first.digest == second.digest
    assert first.payload != second.payload, "their times differ"
    assert by_hand(b'{"commandType":"STOP","commandId":"mine"}').digest != first.digest


def test_a_command_replayed_with_its_derived_id_has_the_same_digest() -> None:
    text = f'{{"commandType":"COMMAND_PAUSE","commandId":"{derived_id(CONTROL, ENTRY)}"}}'
    assert by_hand(text.encode(), entry=f"{NOW_MS + 9}-0").digest == by_hand(JSON).digest


def test_by_hand_is_refused_where_signing_is_on() -> None:
    assert refusal({b"json": JSON}).reason == "signature"
    assert refusal({b"json": JSON}, ring=OFF, compat_secret=COMPAT_SECRET).reason == "signature"
    assert refusal({b"json": JSON}, ring=OFF, allow_json=False).reason == "type"


def test_the_stream_says_what_json_is() -> None:
    halt = by_hand(b'{"level":"HALT","reason":"fire"}', EMERGENCY).message
    assert isinstance(halt, EmergencySignal)
    assert halt.level == EmergencyLevel.EMERGENCY_LEVEL_HALT
    assert halt.attributes["signal_id"] == derived_id(EMERGENCY, ENTRY)
    assert halt.triggered_at.ToMilliseconds() == NOW_MS
    alert = by_hand(b'{"level":"ERROR","sourceSubsystem":"x"}', EMERGENCY).message
    assert isinstance(alert, TelemetryPacket)
    assert by_hand(b'{"epoch":3}', TELEMETRY).message == TelemetryPacket(
        epoch=3, timestamp=alert.timestamp
    )


def test_a_signal_with_a_checksum_is_left_as_it_is() -> None:
    checksum = base64.b64encode(b"0" * 32).decode()
    opened = by_hand(f'{{"level":4,"payloadChecksum":"{checksum}"}}'.encode(), EMERGENCY)
    assert opened.message == EmergencySignal(level=4, payload_checksum=b"0" * 32)  # type: ignore[arg-type]


def test_the_caller_may_say_what_json_is() -> None:
    kind = BusMessageType.BUS_MESSAGE_TYPE_ADAPTATION_COMMAND
    assert by_hand(JSON, "my-stream", json_type=kind).message_type == kind
    with pytest.raises(Refused, match="doesn't say what it carries"):
        by_hand(JSON, "my-stream")


def test_a_mistake_by_hand_is_named_with_what_is_allowed() -> None:
    with pytest.raises(Refused) as error:
        by_hand(b'{"commandType":"PAUZE"}')
    assert error.value.detail.startswith(
        "AdaptationCommand.commandType: 'PAUZE' is not a CommandType; allowed: UNKNOWN, SEED,"
    )
