"""Which slot of a cluster a command belongs to, for the commands that the bus and its tools use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import DataError

_KEYLESS: Final = frozenset(
    {"ACL", "AUTH", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "DEBUG", "ECHO"}
    | {"FLUSHALL", "FLUSHDB", "INFO", "LASTSAVE", "PING", "ROLE", "SCRIPT", "SHUTDOWN", "TIME"}
    | {"WAIT", "WAITAOF"}
)
_FOR_ALL: Final = frozenset(
    {"FLUSHALL", "FLUSHDB", "SCRIPT FLUSH", "CONFIG SET", "CONFIG RESETSTAT"}
    | {"ACL SETUSER", "ACL DELUSER", "CLIENT KILL", "KEYS"}
)
_CONTAINERS: Final = frozenset({"XGROUP", "XINFO", "OBJECT", "MEMORY"})
"""Their key stands behind a word more, if that isn't in one string with them."""


def slot_of(command: Sequence[Any]) -> int | None:
    """Return the slot of a command's first key; ``None`` for one that any node answers.

    A command whose keys are in several slots is refused by the server.

    Raises:
        DataError: the command sees what one node has, and doesn't say which.
    """
    key = _key(command)
    return None if key is None else slot_of_key(key)


def is_for_all(command: Sequence[Any]) -> bool:
    """Tell whether a command concerns a server as a whole, so that all of a cluster are meant."""
    return str(command[0]).upper() in _FOR_ALL


def slot_of_key(key: str | bytes) -> int:
    """Return the slot of a key."""
    return int(key_slot(key.encode() if isinstance(key, str) else key))


def streams_of(command: Sequence[Any]) -> int | None:
    """Where the names of streams begin in a command that reads them, else ``None``."""
    if command[0] not in ("XREAD", "XREADGROUP"):
        return None
    words = [word.upper() if isinstance(word, str | bytes) else word for word in command]
    return next(place for place, word in enumerate(words, 1) if word in ("STREAMS", b"STREAMS"))


def _key(command: Sequence[Any]) -> str | bytes | None:
    first, *subcommand = str(command[0]).upper().split()
    if first in _KEYLESS:
        return None
    if first == "SCAN":
        raise DataError("SCAN sees one node alone: ask each of connection.servers()")
    place = 1
    if first in ("EVAL", "EVALSHA"):
        place = 3 if int(command[2]) else len(command)
    elif first in _CONTAINERS and not subcommand:
        place = 2
    elif (streams := streams_of(command)) is not None:
        place = streams
    key = command[place] if place < len(command) else None
    return key if isinstance(key, str | bytes | None) else str(key)
