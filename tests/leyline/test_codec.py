from typing import Any

import pytest
from google.protobuf.message import Message

from tolaria_bus import leyline
from tolaria_bus.leyline import (
    AdaptationCommand,
    BusMessageType,
    CommandOutcome,
    CommandSeedOperation,
    CommandStatus,
    CommandType,
    SeedOperation,
    SeedState,
    SystemStatePacket,
    TelemetryEvent,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import (
    MAX_MESSAGE_BYTES,
    CodecError,
    decode,
    encode,
    full_name,
    message_class,
    message_type,
    parse_enum,
    short_name,
    short_names,
)

PAUSE = CommandType.COMMAND_PAUSE
SENT_ALONE: list[type[Message]] = [
    leyline.SystemStatePacket,
    leyline.AdaptationCommand,
    leyline.FieldReport,
    leyline.TelemetryPacket,
    leyline.PolicyUpdate,
    leyline.EmergencySignal,
    leyline.CommandOutcome,
    leyline.DeadLetter,
]


def test_every_message_type_has_its_class_and_back() -> None:
    numbers = [number for number in BusMessageType.values() if number]
    assert [message_class(number) for number in numbers] == SENT_ALONE
    assert [message_type(message_class(number)()) for number in numbers] == numbers


@pytest.mark.parametrize("number", [0, 6, 99, -1])
def test_a_type_without_a_message_is_refused(number: int) -> None:
    with pytest.raises(CodecError, match="names no message; allowed: SYSTEM_STATE, ADAPT") as error:
        message_class(number)
    assert error.value.reason == "type"


def test_a_message_that_does_not_travel_alone_is_refused() -> None:
    with pytest.raises(CodecError, match="SeedState is not sent on the bus by itself"):
        message_type(SeedState())


@pytest.mark.parametrize(
    "value", ["COMMAND_PAUSE", "PAUSE", "pause", "Command_Pause", 5, "5", " pause "]
)
def test_an_enum_goes_by_any_of_its_names(value: str | int) -> None:
    assert parse_enum(CommandType, value) == PAUSE


@pytest.mark.parametrize("value", ["PAUZE", "", "COMMAND_", 99, -1, "99", True, "SEED_OP_CULL"])
def test_an_unknown_enum_lists_what_is_allowed(value: str | int) -> None:
    with pytest.raises(ValueError, match="is not a CommandType; allowed: UNKNOWN, SEED, ROLLBACK"):
        parse_enum(CommandType, value)


def test_names_of_enums() -> None:
    assert short_name(CommandType, PAUSE) == "PAUSE"
    assert full_name(CommandType, PAUSE) == "COMMAND_PAUSE"
    assert short_name(CommandType, 99) == full_name(CommandType, 99) == "99"
    assert short_names(CommandStatus)[1] == "APPLIED"
    assert short_names(SeedOperation)[1] == "GERMINATE"


def test_short_names_name_one_value_each() -> None:
    for name in leyline.__all__:
        enum: Any = getattr(leyline, name)
        if hasattr(enum, "values"):
            for number in enum.values():
                assert parse_enum(enum, short_name(enum, number)) == number
                assert parse_enum(enum, full_name(enum, number)) == number


def test_bytes_come_back_as_the_message() -> None:
    sent = AdaptationCommand(command_id="c", command_type=PAUSE, annotations={"b": "2", "a": "1"})
    assert decode(encode(sent), AdaptationCommand) == sent


def test_equal_messages_give_equal_bytes() -> None:
    keys = [f"k{i}" for i in range(50)]
    one = AdaptationCommand(annotations=dict.fromkeys(keys, "v"))
    two = AdaptationCommand(annotations=dict.fromkeys(reversed(keys), "v"))
    assert encode(one) == encode(two)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x12\x02\xff\xfe"])
def test_what_is_no_message_is_malformed(data: bytes) -> None:
    with pytest.raises(CodecError, match=r"^malformed: not a AdaptationCommand"):
        decode(data, AdaptationCommand)


def test_size_is_limited_before_parsing() -> None:
    largest = AdaptationCommand(issued_by="x" * (MAX_MESSAGE_BYTES - 4))
    assert len(encode(largest)) == MAX_MESSAGE_BYTES
    assert decode(encode(largest), AdaptationCommand) == largest
    for data in (b"\xff" * (MAX_MESSAGE_BYTES + 1), largest.SerializeToString() + b"\xff"):
        with pytest.raises(CodecError) as error:
            decode(data, AdaptationCommand)
        assert error.value.reason == "oversize"
    largest.issued_by += "x"
    with pytest.raises(CodecError, match=r"^oversize: AdaptationCommand of 1048577 bytes"):
        encode(largest)


UNKNOWN: Any = 77


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (AdaptationCommand(command_type=UNKNOWN), "AdaptationCommand.command_type"),
        (
            AdaptationCommand(seed_operation=CommandSeedOperation(operation=UNKNOWN)),
            "AdaptationCommand.seed_operation.operation",
        ),
        (
            TelemetryPacket(events=[TelemetryEvent(), TelemetryEvent(level=UNKNOWN)]),
            "TelemetryPacket.events.level",
        ),
        (
            CommandOutcome(first_outcome=CommandOutcome(status=UNKNOWN)),
            "CommandOutcome.first_outcome.status",
        ),
        (
            SystemStatePacket(seed_states=[SeedState(stage=UNKNOWN)]),
            "SystemStatePacket.seed_states",
        ),
    ],
)
def test_an_unknown_enum_number_is_refused_wherever_it_is(message: Message, path: str) -> None:
    with pytest.raises(CodecError, match=r"'77' is not a .*; allowed: ") as error:
        decode(message.SerializeToString(), type(message))
    assert error.value.detail.startswith(path)


def test_fields_that_are_not_known_yet_are_let_through() -> None:
    newer = AdaptationCommand(command_id="c").SerializeToString() + b"\xf2\x3f\x01x"
    assert decode(newer, AdaptationCommand).command_id == "c"


def test_no_map_of_the_contract_holds_messages_or_enums() -> None:
    for name in leyline.__all__:
        kind = getattr(leyline, name).DESCRIPTOR
        for field in getattr(kind, "fields", ()):
            below = field.message_type
            if below is not None and below.GetOptions().map_entry:
                value = below.fields_by_name["value"]
                assert value.message_type is value.enum_type is None


def test_nesting_without_end_is_refused() -> None:
    data = b""
    for _ in range(200):
        # Field 16, first_outcome: the tag, the length (in two bytes) and what is inside.
        size = bytes([len(data) & 0x7F | 0x80, len(data) >> 7])
        data = b"\x82\x01" + size + data
    with pytest.raises(CodecError, match=r"^malformed"):
        decode(data, CommandOutcome)
