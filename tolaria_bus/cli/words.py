"""Words of a command line as values: ``name=value``, numbers, lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import orjson

_LARGEST_WHOLE: Final = 2**53
"""A Struct holds doubles: whole numbers beyond this would be changed on the way."""


class ComposeError(ValueError):
    """The words can't be made into a command; one line naming the word and what is allowed."""


def assignments(subject: str, words: Iterable[str]) -> dict[str, Any]:
    """``name=value`` words as a dictionary.

    Raises:
        ComposeError: A word is no assignment, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ComposeError(f"{subject}: {word!r} must be name=value")
        if name in found:
            raise ComposeError(f"{subject}: {name} is given twice")
        found[name] = parse_value(f"{subject}: {name}", text)
    return found


def parse_value(subject: str, text: str) -> Any:
    """What a word stands for: a number, true, false, a list (``0.9,0.95``), JSON, or itself.

    ``nan`` and ``inf`` are numbers: whether they make sense is the run's to say.

    Raises:
        ComposeError: A whole number too large to arrive as it is.
    """
    if "," in text and text[0] not in "[{":
        return [parse_value(subject, part) for part in text.split(",") if part.strip()]
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        parsed = _loose(text)
    if isinstance(parsed, int) and abs(parsed) > _LARGEST_WHOLE:
        raise ComposeError(f"{subject} = {text}: whole numbers up to 2**53 only")
    return parsed


def _loose(text: str) -> Any:
    lower = text.strip().lower()
    if lower in ("true", "false"):
        return lower == "true"
    try:
        return float(text)
    except ValueError:
        return text
