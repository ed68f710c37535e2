"""Numbers that crossed the wire as float32, read as the decimals that people meant."""

import math
import struct
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import struct_pb2

_FLOAT32: Final = struct.Struct("<f")
_LARGEST_FLOAT32: Final = 3.4028234663852886e38


def shortest_float(value: float) -> float:
    """Return the double nearest to the shortest decimal that names the float32 ``value``.

    0.001 sent as a float32 arrives as 0.0010000000474974513; what was meant is 0.001. NaN,
    infinities and doubles that are no float32 are returned as they are, and so is the largest
    float32: the decimals that name it are beyond it, and nobody reads them as a float32 again.
    """
    if not math.isfinite(value) or abs(value) > _LARGEST_FLOAT32 or _float32(value) != value:
        return value
    # Six digits always survive a float32, nine always name one.
    candidates = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    named = (c for c in candidates if abs(c) <= _LARGEST_FLOAT32 and _float32(c) == value)
    return next(named, value)


def hyperparameters(floats: Mapping[str, float], values: struct_pb2.Struct) -> dict[str, Any]:
    """Return the hyperparameters of a command: the float map, then ``values``, which wins.

    Args:
        floats: a ``map<string, float>`` field.
        values: the Struct beside it; its lists and objects become Python's.
    """
    merged: dict[str, Any] = {key: shortest_float(floats[key]) for key in sorted(floats)}
    merged.update((key, plain_value(values.fields[key])) for key in sorted(values.fields))
    return merged


def plain_value(value: struct_pb2.Value) -> Any:
    """Return a Struct's value as None, bool, float, str, list or dict."""
    match value.WhichOneof("kind"):
        case "number_value":
            return value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "list_value":
            return [plain_value(item) for item in value.list_value.values]
        case "struct_value":
            fields = value.struct_value.fields
            return {key: plain_value(fields[key]) for key in sorted(fields)}
        case _:
            return None


def _float32(value: float) -> float:
    rounded: float = _FLOAT32.unpack(_FLOAT32.pack(value))[0]
    return rounded
