"""Words and colours of a line: what is safe to print on a terminal, and how it is painted.

Messages come from anybody who can write to a stream, so no character of theirs reaches the
terminal that could move its cursor, change its colours or turn the text round.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, Literal, TextIO

Style = Literal["plain", "dim", "name", "good", "note", "warn", "bad", "loud"]
Part = tuple[str, Style]

_CODES: Final[dict[Style, str]] = {
    "plain": "",
    "dim": "2",
    "name": "1",
    "good": "32",
    "note": "36",
    "warn": "33",
    "bad": "31",
    "loud": "1;97;41",
}
_LONGEST: Final = 2000
"""Characters of one text: a message may have a mebibyte of it, a line for people may not."""


def clean(text: str) -> str:
    """Text with whatever isn't printable written as its escape, and cut where it is too long."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text[:_LONGEST]
    )
    return shown if len(text) <= _LONGEST else f"{shown}… ({len(text)} characters)"


def paint(parts: Iterable[Part], *, colour: bool) -> str:
    """One line of cleaned parts; empty ones vanish, single spaces stand between the others."""
    words = [(clean(text), style) for text, style in parts if text]
    if not colour:
        return " ".join(text for text, _ in words)
    return " ".join(
        f"\x1b[{_CODES[style]}m{text}\x1b[0m" if _CODES[style] else text for text, style in words
    )


def wants_colour(stream: TextIO) -> bool:
    """Whether to paint what goes to ``stream``: a terminal, unless ``NO_COLOR`` says not to.

    ``FORCE_COLOR`` paints in any case, as for a pager or the log of a container.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
