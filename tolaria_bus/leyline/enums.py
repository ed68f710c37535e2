"""Names of enum values: the full one (``COMMAND_PAUSE``), the short one (``PAUSE``), the number.

Functions take a generated enum (``CommandType``) or its descriptor.
"""

from functools import cache
from itertools import takewhile
from typing import Any

from google.protobuf.descriptor import EnumDescriptor


def full_name(enum: Any, number: int) -> str:
    """Return ``COMMAND_PAUSE`` for 5; a number without a name is returned as its digits."""
    value = descriptor(enum).values_by_number.get(number)
    return str(number) if value is None else str(value.name)


def short_name(enum: Any, number: int) -> str:
    """Return ``PAUSE`` for 5; a number without a name is returned as its digits."""
    return full_name(enum, number).removeprefix(_prefix(descriptor(enum)))


def short_names(enum: Any) -> list[str]:
    """Return the short names of all values, in the order of the contract."""
    enum = descriptor(enum)
    return [short_name(enum, value.number) for value in enum.values]


def parse_enum(enum: Any, value: str | int) -> int:
    """Return the number that a name (full or short, any case) or a number stands for.

    Raises:
        ValueError: no such value; the message lists the allowed ones.
    """
    enum = descriptor(enum)
    number = None
    if isinstance(value, str):
        number = _numbers(enum).get(value.strip().upper())
    elif isinstance(value, int) and not isinstance(value, bool) and value in enum.values_by_number:
        number = value
    if number is None:
        allowed = ", ".join(short_names(enum))
        raise ValueError(f"{str(value)[:80]!r} is not a {enum.name}; allowed: {allowed}")
    return number


def descriptor(enum: Any) -> EnumDescriptor:
    """Return the descriptor of a generated enum; a descriptor is returned as it is."""
    found: EnumDescriptor = getattr(enum, "DESCRIPTOR", enum)
    return found


@cache
def _prefix(enum: EnumDescriptor) -> str:
    """The part up to an underscore that all names of the enum begin with."""
    names = [value.name for value in enum.values]
    # What the first and the last in order share, all share.
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names), strict=False))
    length = sum(1 for _ in shared)
    return names[0][: names[0].rfind("_", 0, length) + 1]


@cache
def _numbers(enum: EnumDescriptor) -> dict[str, int]:
    names = {str(value.number): value.number for value in enum.values}
    names.update((short_name(enum, value.number).upper(), value.number) for value in enum.values)
    names.update((value.name.upper(), value.number) for value in enum.values)
    return names
