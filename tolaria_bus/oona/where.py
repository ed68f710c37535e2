"""Which dead letters: conditions as ``reason=signature``, each on one thing that a letter tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from tolaria_bus.leyline import AdaptationCommand, BusMessageType, CommandType
from tolaria_bus.leyline.codec import message_type, short_name

if TYPE_CHECKING:
    from tolaria_bus.oona.letters import Found

KEYS: Final = ("reason", "stream", "group", "source", "type", "command_id")


class BadCondition(ValueError):
    """A condition can't be understood; one line."""


@dataclass(frozen=True, slots=True)
class Where:
    """Conditions on letters. Of one key any value will do; all keys must fit.

    Attributes:
        conditions: Key to allowed values; ``*`` and ``?`` stand for any letters, as in a shell.
    """

    conditions: Mapping[str, frozenset[str]]

    @classmethod
    def parse(cls, words: Iterable[str]) -> Where:
        """Read ``key=value`` words.

        Raises:
            BadCondition: A word is no condition.
        """
        found: dict[str, frozenset[str]] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or key not in KEYS or not value:
                raise BadCondition(f"{word!r} must be key=value, key one of {', '.join(KEYS)}")
            found[key] = found.get(key, frozenset()) | {_word(key, value)}
        return cls(found)

    def matches(self, found: Found) -> bool:
        """Does a letter fit?"""
        for key, values in self.conditions.items():
            facts = [_word(key, fact) for fact in _facts(found, key)]
            if not any(fnmatchcase(fact, value) for fact in facts for value in values):
                return False
        return True


def _word(key: str, value: str) -> str:
    return value.casefold().replace("-", "_") if key == "type" else value


def _facts(found: Found, key: str) -> list[str]:
    """What a letter says under a key; a command has its own kind as a type too."""
    letter, contents = found.letter, found.contents
    if key == "reason":
        return [found.reason]
    if letter is None or contents is None:
        return []
    match key:
        case "stream":
            return [letter.stream]
        case "group":
            return [letter.group]
        case "source":
            return [contents.source]
        case "command_id":
            return [contents.command_id]
        case _:
            return types(contents.message)


def types(message: object) -> list[str]:
    """The short names of a message's type and, if it is a command, of the command's."""
    if message is None:
        return []
    names = [short_name(BusMessageType, message_type(message))]  # type: ignore[arg-type]
    if isinstance(message, AdaptationCommand):
        names.append(short_name(CommandType, message.command_type))
    return names
