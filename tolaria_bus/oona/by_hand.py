"""Entries written by hand: one message as JSON, with what a person leaves out filled in.

What the JSON means depends on the stream, for the entry has no type:

- ``control``: an ``AdaptationCommand``;
- ``emergency``: an ``EmergencySignal`` if it has only fields of one, else a ``TelemetryPacket``;
- ``state``, ``telemetry``, ``outcomes``, ``reports``, ``dead``, ``policies``: what they carry.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import orjson
from google.protobuf.message import Message

from tolaria_bus.leyline import AdaptationCommand, BusMessageType, EmergencySignal, TelemetryPacket
from tolaria_bus.leyline.codec import MAX_MESSAGE_BYTES, CodecError, from_json, message_class

_CARRIED: Final[dict[str, tuple[int, ...]]] = {
    "control": (BusMessageType.BUS_MESSAGE_TYPE_ADAPTATION_COMMAND,),
    "emergency": (
        BusMessageType.BUS_MESSAGE_TYPE_EMERGENCY_SIGNAL,
        BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY,
    ),
    "state": (BusMessageType.BUS_MESSAGE_TYPE_SYSTEM_STATE,),
    "telemetry": (BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY,),
    "outcomes": (BusMessageType.BUS_MESSAGE_TYPE_COMMAND_OUTCOME,),
    "reports": (BusMessageType.BUS_MESSAGE_TYPE_FIELD_REPORT,),
    "policies": (BusMessageType.BUS_MESSAGE_TYPE_POLICY_UPDATE,),
    "dead": (BusMessageType.BUS_MESSAGE_TYPE_DEAD_LETTER,),
}

_DATES: Final[dict[type[Message], str]] = {
    AdaptationCommand: "issued_at",
    EmergencySignal: "triggered_at",
    TelemetryPacket: "timestamp",
}
"""The field in which a kind of message says when it was issued."""


def derived_id(stream: str, entry_id: str) -> str:
    """Return the id of a message that was written without one: the same at every delivery."""
    text = f"{stream}\n{entry_id}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:32]


def read_by_hand(text: bytes, stream: str, message_type: int | None = None) -> Message:
    """Read the ``json`` field of an entry of ``stream``.

    Args:
        text: one message as protobuf JSON.
        stream: the key that the entry is from.
        message_type: what it must be, where the caller knows better than the stream's name.

    Raises:
        CodecError: it is no such message, or the stream's name doesn't say what it carries.
    """
    by_name = _CARRIED.get(stream.rpartition(":")[2], ())
    types = by_name if message_type is None else (message_type,)
    if not types:
        raise CodecError("type", f"json in stream {stream!r}: its name doesn't say what it carries")
    classes = [message_class(number) for number in types]
    return from_json(text, classes[0] if len(classes) == 1 else _fitting(text, classes))


def _fitting(text: bytes, classes: Sequence[type[Message]]) -> type[Message]:
    """Return the first class that has all fields of the object; the first, if none has."""
    try:
        data: Any = orjson.loads(text) if len(text) <= MAX_MESSAGE_BYTES else None
    except orjson.JSONDecodeError:
        return classes[0]
    if not isinstance(data, dict):
        return classes[0]
    for cls in classes:
        kind = cls.DESCRIPTOR
        if data.keys() <= {*kind.fields_by_name, *kind.fields_by_camelcase_name}:
            return cls
    return classes[0]


def identify(message: Message, stream: str, entry_id: str) -> None:
    """Give a command or signal that has no id the one of its entry."""
    if isinstance(message, AdaptationCommand) and not message.command_id:
        message.command_id = derived_id(stream, entry_id)
    elif isinstance(message, EmergencySignal) and not message.payload_checksum:
        # With a checksum the message is complete; a field more would make it wrong.
        message.attributes.setdefault("signal_id", derived_id(stream, entry_id))


def date(message: Message, issued_at_ns: int) -> None:
    """Give a message that :func:`undated` found to be so this time of issue.

    Args:
        message: is changed.
        issued_at_ns: nanoseconds since the epoch.

    Raises:
        ValueError: no date is so far away.
    """
    getattr(message, _DATES[type(message)]).FromNanoseconds(issued_at_ns)


def undated(message: Message) -> bool:
    """Tell whether a message should say when it was issued, and doesn't."""
    name = _DATES.get(type(message))
    if name is None or message.HasField(name):
        return False
    # With a checksum the message is complete; a field more would make it wrong.
    return not (isinstance(message, EmergencySignal) and message.payload_checksum)
