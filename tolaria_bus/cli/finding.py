"""What a check of ``doctor`` found: one line, with the mend where one is needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tolaria_bus.cli.style import Style, paint

_WIDTH: Final = 14


class Mark(Enum):
    """How serious it is."""

    GOOD = "✓"
    NOTE = "!"
    BAD = "✗"


_STYLES: Final[dict[Mark, Style]] = {Mark.GOOD: "good", Mark.NOTE: "warn", Mark.BAD: "bad"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        mark: GOOD, NOTE (works, but know this) or BAD (won't work).
        subject: What was looked at, one or two words.
        text: What was found.
        mend: What to do about it; empty where it is good.
    """

    mark: Mark
    subject: str
    text: str
    mend: str = ""


def good(subject: str, text: str) -> Finding:
    """It is as it should be."""
    return Finding(Mark.GOOD, subject, text)


def note(subject: str, text: str, mend: str = "") -> Finding:
    """It works; this is worth knowing."""
    return Finding(Mark.NOTE, subject, text, mend)


def bad(subject: str, text: str, mend: str = "") -> Finding:
    """It doesn't work."""
    return Finding(Mark.BAD, subject, text, mend)


def worst(findings: Iterable[Finding]) -> Finding:
    """The most serious one; of several, the first."""
    marks = list(Mark)
    return max(findings, key=lambda finding: marks.index(finding.mark))


def line(finding: Finding, *, colour: bool) -> str:
    """``✓ torch          2.13.0``; a mend follows after an arrow."""
    return paint(
        [
            (finding.mark.value, _STYLES[finding.mark]),
            (f"{finding.subject:<{_WIDTH}}", "name"),
            (finding.text, "plain"),
            (f"→ {finding.mend}" if finding.mend else "", "note"),
        ],
        colour=colour,
    )


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if anything is bad, else 0."""
    return int(any(finding.mark is Mark.BAD for finding in findings))
