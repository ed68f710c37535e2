"""Any message survives bytes and JSON; anything else is one clear error."""

import base64
from typing import Any

import orjson
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus import leyline
from tolaria_bus.leyline import (
    EmergencySignal,
    JournalRecord,
)
from tolaria_bus.leyline.codec import (
    CodecError,
    decode,
    encode,
    from_json,
    to_json,
)

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


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
PLAIN_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def messages(draw: st.DrawFn, cls: type[Message], depth: int = 0) -> Message:
    message = cls()
    for field in cls.DESCRIPTOR.fields:
        if draw(st.booleans()):
            fill_field(draw, message, field, depth)
    return message


def fill_field(draw: st.DrawFn, message: Any, field: Any, depth: int) -> None:
    below, name = field.message_type, field.name
    if below is not None and below.GetOptions().map_entry:
        value = below.fields_by_name["value"]
        getattr(message, name).update(draw(st.dictionaries(TEXTS, scalar(value), max_size=3)))
    elif below is None:
        one = scalar(field)
        if field.is_repeated:
            getattr(message, name).extend(draw(st.lists(one, max_size=3)))
        else:
            setattr(message, name, draw(one))
    elif below.name == "Timestamp":
        getattr(message, name).FromNanoseconds(draw(st.integers(0, 4 * 10**18)))
    elif below.name == "Struct":
        getattr(message, name).update(draw(st.dictionaries(TEXTS, PLAIN_VALUES, max_size=3)))
    elif depth < 2:
        kind = messages(getattr(leyline, below.name), depth + 1)
        if field.is_repeated:
            getattr(message, name).extend(draw(st.lists(kind, max_size=2)))
        else:
            getattr(message, name).CopyFrom(draw(kind))


def scalar(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return {
        field.TYPE_STRING: TEXTS,
        field.TYPE_BYTES: st.binary(max_size=8),
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_FLOAT: st.floats(width=32, allow_nan=False),
        field.TYPE_DOUBLE: st.floats(allow_nan=False),
        field.TYPE_UINT32: st.integers(0, 2**32 - 1),
        field.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        field.TYPE_UINT64: st.integers(0, 2**64 - 1),
    }[field.type]


ANY_MESSAGE = st.sampled_from([*SENT_ALONE, JournalRecord]).flatmap(messages)


@given(ANY_MESSAGE)
def test_bytes_round_trip(message: Message) -> None:
    assert decode(encode(message), type(message)) == message


@given(ANY_MESSAGE, st.booleans(), st.booleans())
def test_json_round_trip(message: Message, short: bool, indent: bool) -> None:
    text = to_json(message, short_enums=short, indent=indent)
    assert from_json(text, type(message)) == message


@given(st.binary(max_size=100), st.sampled_from(SENT_ALONE))
def test_any_bytes_are_a_message_or_an_error(data: bytes, cls: type[Message]) -> None:
    for read in (decode, from_json):
        try:
            assert to_json(read(data, cls))
        except CodecError as error:
            assert error.detail  # noqa: PT017 - either way is right


def test_a_checksum_is_base64_in_json() -> None:
    text = to_json(EmergencySignal(payload_checksum=b"\x00\xff"))
    assert orjson.loads(text) == {"payloadChecksum": base64.b64encode(b"\x00\xff").decode()}
