"""Messages as JSON for people.

It is protobuf's own mapping, more forgiving about enums and clearer about mistakes.

Reading prepares the parsed JSON (names of fields checked, enum names made numbers) and leaves the
conversion to protobuf's ``ParseDict``. Writing is done here: protobuf's writer refuses values that
a message may well hold (NaN in a Struct, a timestamp out of range), and whoever shows a broken
message must be able to.
"""

import base64
import difflib
import math
from collections.abc import Iterable
from typing import Any, Final, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from tolaria_bus.leyline.enums import full_name, parse_enum, short_name
from tolaria_bus.leyline.numbers import plain_value, shortest_float

MAX_DEPTH: Final = 32
"""Levels of lists and objects in a JSON message; what is deeper was not written by a person."""
MAX_VALUES: Final = 20_000
"""Values in a JSON message. Each costs microseconds to convert: a megabyte of ``{}`` would hold up
everything else for seconds."""


def fill(message: Message, data: object) -> None:
    """Set the fields of ``message`` from parsed JSON.

    Raises:
        ValueError: one sentence naming the field, the value and what is allowed.
    """
    _check_shape(data)
    kind = cast("Descriptor", message.DESCRIPTOR)
    prepared = _prepared(kind, data, kind.name)
    try:
        json_format.ParseDict(prepared, message)
    except json_format.ParseError as error:
        raise ValueError(f"{kind.name}: {_one_line(error)}") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        # ParseDict meets some wrong types with whatever Python raises.
        raise ValueError(f"{kind.name}: wrong type of value: {_one_line(error)}") from None


def plain(message: Message, *, short_enums: bool = True) -> Any:
    """Return ``message`` as JSON-able Python values; never fails.

    64-bit integers are strings and bytes base64, as protobuf's mapping has it; NaN and infinities
    are the strings ``NaN``, ``Infinity``, ``-Infinity``.
    """
    if isinstance(message, Timestamp):
        try:
            return message.ToJsonString()
        except ValueError:
            return f"out of range: {message.seconds} s {message.nanos} ns"
    if isinstance(message, Struct):
        return _finite(plain_value_of(message))
    written: dict[str, Any] = {}
    for field, value in message.ListFields():
        if is_map(field):
            item = _map_value(field)
            written[field.json_name] = {
                str(key): _plain_one(item, value[key], short_enums) for key in sorted(value)
            }
        elif field.is_repeated:
            written[field.json_name] = [_plain_one(field, one, short_enums) for one in value]
        else:
            written[field.json_name] = _plain_one(field, value, short_enums)
    return written


def plain_value_of(struct: Struct) -> dict[str, Any]:
    """Return a Struct as a dict."""
    return {key: plain_value(struct.fields[key]) for key in sorted(struct.fields)}


def is_map(field: FieldDescriptor) -> bool:
    """Tell whether ``field`` is a map (on the wire: a repeated message of key and value)."""
    kind = field.message_type
    return bool(kind is not None and kind.has_options and kind.GetOptions().map_entry)


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"]


def _check_shape(data: object) -> None:
    # Level by level, not recursive: the input decides how deep it goes.
    level: list[object] = [data]
    values = 0
    for _ in range(MAX_DEPTH + 1):
        level = [child for value in level for child in _children(value)]
        values += len(level)
        if values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _prepared(kind: Descriptor, data: object, path: str) -> dict[str, object]:
    """Return ``data`` with every enum as its number; refuse names that are no fields."""
    if not isinstance(data, dict):
        raise ValueError(f"{path}: {_shown(data)} must be an object")  # noqa: TRY004 - of input
    prepared: dict[str, object] = {}
    for key, value in data.items():
        field = _field(kind, key, path)
        if field.name in prepared:
            raise ValueError(f"{path}.{field.name}: given twice")
        prepared[field.name] = _prepared_field(field, value, f"{path}.{key}")
    return prepared


def _prepared_field(field: FieldDescriptor, value: object, path: str) -> object:
    if value is None:
        return None
    if is_map(field):
        if not isinstance(value, dict):
            raise ValueError(f"{path}: {_shown(value)} must be an object")
        item = _map_value(field)
        return {key: _prepared_one(item, one, f"{path}.{key}") for key, one in value.items()}
    if field.is_repeated:
        if not isinstance(value, list):
            raise ValueError(f"{path}: {_shown(value)} must be a list")
        return [_prepared_one(field, one, f"{path}[{i}]") for i, one in enumerate(value)]
    return _prepared_one(field, value, path)


def _prepared_one(field: FieldDescriptor, value: object, path: str) -> object:
    if field.enum_type is not None:
        if not isinstance(value, str | int):
            raise ValueError(f"{path}: {_shown(value)} is not a {field.enum_type.name}")
        try:
            return parse_enum(field.enum_type, value)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if field.message_type is not None and field.message_type.file.package != "google.protobuf":
        return _prepared(field.message_type, value, path)
    # Protobuf's own words for these name no value.
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not isinstance(value, str):
        raise ValueError(f"{path}: {_shown(value)} must be a string")
    if field.message_type is Timestamp.DESCRIPTOR:
        _check_time(value, path)
    return value


def _check_time(value: object, path: str) -> None:
    try:
        Timestamp().FromJsonString(str(value))
    except ValueError:
        shown = _shown(value)
        raise ValueError(f"{path}: {shown} is not a time such as 2030-01-31T12:00:00Z") from None


def _field(kind: Descriptor, key: str, path: str) -> FieldDescriptor:
    field = kind.fields_by_name.get(key) or kind.fields_by_camelcase_name.get(key)
    if field is None:
        names = [one.name for one in kind.fields]
        close = difflib.get_close_matches(key[:80], names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(names)}"
        raise ValueError(f"{path}: no field {key[:80]!r}; {hint}")
    return field


def _plain_one(field: FieldDescriptor, value: Any, short_enums: bool) -> Any:
    if field.message_type is not None:
        return plain(value, short_enums=short_enums)
    if field.enum_type is not None:
        return (short_name if short_enums else full_name)(field.enum_type, value)
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_INT64 | FieldDescriptor.CPPTYPE_UINT64:
            return str(value)
        case FieldDescriptor.CPPTYPE_FLOAT:
            return _finite(shortest_float(value))
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return _finite(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _finite(value: Any) -> Any:
    """Return ``value`` with floats that JSON has no word for as strings."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _shown(value: object) -> str:
    return repr(value)[:80]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
