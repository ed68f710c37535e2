"""Bytes and JSON to messages, or one clear error; messages to bytes and JSON.

What arrives may be anything. Everything here either returns a message whose every enum has a name
in the contract, or raises :class:`CodecError`; sizes are looked at before anything is parsed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeVar

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tolaria_bus.leyline import (
    AdaptationCommand,
    BusMessageType,
    CommandOutcome,
    DeadLetter,
    EmergencySignal,
    FieldReport,
    PolicyUpdate,
    SystemStatePacket,
    TelemetryPacket,
)
from tolaria_bus.leyline.enums import full_name, parse_enum, short_name, short_names
from tolaria_bus.leyline.json_form import fill, plain
from tolaria_bus.leyline.numbers import hyperparameters, shortest_float

MAX_MESSAGE_BYTES: Final = 1 << 20
"""The largest message, as bytes or as JSON text."""
MAX_CHECKED: Final = 20_000
"""Messages in one field of a message that have enums to be looked at. Each takes a microsecond or
two: a megabyte of empty ones would hold up everything else for a second."""

Reason = Literal["malformed", "oversize", "type"]
AnyMessage = TypeVar("AnyMessage", bound=Message)

_CLASSES: Final[dict[BusMessageType.ValueType, type[Message]]] = {
    BusMessageType.BUS_MESSAGE_TYPE_SYSTEM_STATE: SystemStatePacket,
    BusMessageType.BUS_MESSAGE_TYPE_ADAPTATION_COMMAND: AdaptationCommand,
    BusMessageType.BUS_MESSAGE_TYPE_FIELD_REPORT: FieldReport,
    BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY: TelemetryPacket,
    BusMessageType.BUS_MESSAGE_TYPE_POLICY_UPDATE: PolicyUpdate,
    BusMessageType.BUS_MESSAGE_TYPE_EMERGENCY_SIGNAL: EmergencySignal,
    BusMessageType.BUS_MESSAGE_TYPE_COMMAND_OUTCOME: CommandOutcome,
    BusMessageType.BUS_MESSAGE_TYPE_DEAD_LETTER: DeadLetter,
}
_BY_NUMBER: Final[Mapping[int, type[Message]]] = {int(key): cls for key, cls in _CLASSES.items()}
_TYPES: Final = {cls: number for number, cls in _CLASSES.items()}


class CodecError(ValueError):
    """A message can't be read or written."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        """malformed: no such message, or a value is wrong; oversize; type: no such message type."""
        self.detail = detail
        """One sentence for people, naming the field and the value."""


def message_class(message_type: int) -> type[Message]:
    """Return the class of a ``BusMessageType``.

    Raises:
        CodecError: ``type``: the number is unknown or unspecified.
    """
    found = _BY_NUMBER.get(message_type)
    if found is None:
        allowed = ", ".join(short_name(BusMessageType, number) for number in _CLASSES)
        shown = short_name(BusMessageType, message_type)
        raise CodecError("type", f"message_type {shown} names no message; allowed: {allowed}")
    return found


def message_type(message: Message) -> BusMessageType.ValueType:
    """Return the ``BusMessageType`` of a message.

    Raises:
        CodecError: ``type``: it is none that travels on the bus by itself.
    """
    found = _TYPES.get(type(message))
    if found is None:
        raise CodecError("type", f"{message.DESCRIPTOR.name} is not sent on the bus by itself")
    return found


def check_size(cls: type[Message], size: int) -> None:
    """Refuse a message of more than MAX_MESSAGE_BYTES.

    Raises:
        CodecError: ``oversize``.
    """
    if size > MAX_MESSAGE_BYTES:
        name = cls.DESCRIPTOR.name
        raise CodecError("oversize", f"{name} of {size} bytes; at most {MAX_MESSAGE_BYTES}")


def decode(data: bytes, cls: type[AnyMessage]) -> AnyMessage:
    """Read protobuf bytes.

    Raises:
        CodecError: ``oversize``, or ``malformed``: no such message, or an unknown enum number.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        check_size(cls, len(data))
    try:
        message = cls.FromString(data)
    except DecodeError as error:
        raise CodecError("malformed", f"not a {cls.DESCRIPTOR.name}: {error}") from None
    plan = _PLANS.get(cls)
    if plan is None:
        plan = _PLANS[cls] = _plan(cls.DESCRIPTOR)
    _refuse_unknown_enums(message, plan, "")
    return message


def encode(message: Message) -> bytes:
    """Write protobuf bytes, the same for equal messages.

    Raises:
        CodecError: ``oversize``: no reader would take it.
    """
    data = message.SerializeToString(deterministic=True)
    check_size(type(message), len(data))
    return data


def from_json(text: bytes | str, cls: type[AnyMessage]) -> AnyMessage:
    """Read one message as protobuf JSON.

    Fields go by lowerCamelCase or snake_case, enums by full or short name in any case or number.

    Raises:
        CodecError: ``oversize`` or ``malformed``.
    """
    name = cls.DESCRIPTOR.name
    # A character is at least one byte, so text of that many characters is too large already.
    check_size(cls, len(text))
    try:
        raw = text.encode() if isinstance(text, str) else text
        check_size(cls, len(raw))
        data = orjson.loads(raw)
        message = cls()
        fill(message, data)
    except orjson.JSONDecodeError as error:
        raise CodecError("malformed", f"not JSON: {error}") from None
    except UnicodeEncodeError:
        raise CodecError("malformed", f"{name}: text that UTF-8 can't carry") from None
    except CodecError:
        raise
    except ValueError as error:
        raise CodecError("malformed", str(error)) from None
    return message


def to_json(message: Message, *, indent: bool = False, short_enums: bool = True) -> str:
    """Write a message as JSON for people; never fails for a message that was decoded.

    Args:
        message: any message of the contract.
        indent: over several lines, instead of in one.
        short_enums: ``PAUSE`` instead of ``COMMAND_PAUSE``.
    """
    option = orjson.OPT_INDENT_2 if indent else None
    return orjson.dumps(plain(message, short_enums=short_enums), option=option).decode()


@dataclass(frozen=True, slots=True)
class _EnumPlan:
    """Where a kind of message has enums: in these fields, and below those.

    Every message that arrives is walked by it, so all that can be known ahead is in it: of each
    field its name and whether it repeats, then the numbers that have a name, or what is below.
    """

    single: tuple[tuple[str, frozenset[int], FieldDescriptor], ...]
    repeated: tuple[tuple[str, frozenset[int], FieldDescriptor], ...]
    below: tuple[tuple[str, bool, Descriptor], ...]


_PLANS: Final[dict[type[Message], _EnumPlan]] = {}
"""Those of whole messages, by class: quicker to find than by descriptor."""


@cache
def _plan(kind: Descriptor) -> _EnumPlan:
    enums = [
        (field.name, frozenset(field.enum_type.values_by_number), field)
        for field in kind.fields
        if field.enum_type is not None
    ]
    return _EnumPlan(
        single=tuple(enum for enum in enums if not enum[2].is_repeated),
        repeated=tuple(enum for enum in enums if enum[2].is_repeated),
        below=tuple(
            # No map of the contract holds messages or enums, so what repeats here is a plain list.
            (field.name, field.is_repeated, field.message_type)
            for field in kind.fields
            if field.message_type is not None and _reaches_enum(field.message_type, frozenset())
        ),
    )


def _reaches_enum(kind: Descriptor, seen: frozenset[str]) -> bool:
    # Struct's one enum, null_value, has one value and means the same whatever its number.
    if kind.full_name in seen or kind.file.package == "google.protobuf":
        return False
    seen |= {kind.full_name}
    return any(
        field.enum_type is not None
        or (field.message_type is not None and _reaches_enum(field.message_type, seen))
        for field in kind.fields
    )


def _refuse_unknown_enums(message: Message, plan: _EnumPlan, path: str) -> None:
    for name, numbers, field in plan.single:
        if getattr(message, name) not in numbers:
            # Only now, for its message: names the value and what is allowed.
            _refuse_enum(field, getattr(message, name), path or message.DESCRIPTOR.name)
    for name, numbers, field in plan.repeated:
        for number in getattr(message, name):
            if number not in numbers:
                _refuse_enum(field, number, path or message.DESCRIPTOR.name)
    for name, repeated, below in plan.below:
        if repeated:
            inner = getattr(message, name)
            if not inner:
                continue
            if len(inner) > MAX_CHECKED:
                where = f"{path or message.DESCRIPTOR.name}.{name}"
                raise CodecError("malformed", f"{where}: {len(inner)}, at most {MAX_CHECKED}")
        elif message.HasField(name):
            inner = (getattr(message, name),)
        else:
            continue
        for each in inner:
            _refuse_unknown_enums(each, _plan(below), f"{path or message.DESCRIPTOR.name}.{name}")


def _refuse_enum(field: FieldDescriptor, number: int, path: str) -> None:
    try:
        parse_enum(field.enum_type, number)
    except ValueError as error:
        raise CodecError("malformed", f"{path}.{field.name}: {error}") from None


__all__ = [
    "MAX_MESSAGE_BYTES",
    "CodecError",
    "Reason",
    "check_size",
    "decode",
    "encode",
    "from_json",
    "full_name",
    "hyperparameters",
    "message_class",
    "message_type",
    "parse_enum",
    "short_name",
    "short_names",
    "shortest_float",
    "to_json",
]
