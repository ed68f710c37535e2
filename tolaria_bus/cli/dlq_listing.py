"""``dlq ls`` and ``dlq show``: reading only."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from contextlib import aclosing
from dataclasses import dataclass

import anyio

from tolaria_bus.cli.dlq_place import Choice, opened
from tolaria_bus.cli.leaving import interrupt_at_once
from tolaria_bus.cli.letter_lines import as_json as letter_json
from tolaria_bus.cli.letter_lines import counts, line, page
from tolaria_bus.cli.style import paint, wants_colour


@dataclass(frozen=True, slots=True)
class Listing:
    """How letters are listed.

    Attributes:
        count: So many, the newest of each stream.
        as_json: JSON lines instead of readable ones.
    """

    count: int
    as_json: bool


def list_letters(choice: Choice, listing: Listing) -> None:
    """Print letters, the newest last, and how many there are for each reason.

    Raises:
        NotLocated: There is no server, or not one run.
        ServerUnreachable: It doesn't answer.
    """
    interrupt_at_once()
    anyio.run(_list, choice, listing)


def show_letter(choice: Choice, *, as_json: bool) -> None:
    """Print everything about the one letter that is chosen.

    Raises:
        NoSuchLetter: It isn't there.
        NotLocated: There is no server, or not one run.
        ServerUnreachable: It doesn't answer.
    """
    interrupt_at_once()
    anyio.run(_show, choice, as_json)


async def _list(choice: Choice, listing: Listing) -> None:
    colour, now = wants_colour(sys.stdout), time.time()
    reasons: Counter[str] = Counter()
    # Lines and not letters: ten thousand of these may be of a mebibyte each.
    newest: deque[tuple[tuple[int, int], str]] = deque()
    async with opened(choice) as place:
        for box in place.boxes:
            of_box: deque[tuple[tuple[int, int], str]] = deque(maxlen=listing.count)
            async with aclosing(box.all(choice.where, after=place.after)) as letters:
                async for found in letters:
                    reasons[found.reason] += 1
                    text = (
                        letter_json(found)
                        if listing.as_json
                        else paint(line(found, now), colour=colour)
                    )
                    of_box.append((_order(found.entry_id), text))
            newest = deque(sorted([*newest, *of_box]), maxlen=listing.count)
        streams = ", ".join(box.dead for box in place.boxes)
    for _, text in newest:
        print(text)
    if listing.as_json:
        return
    total = sum(reasons.values())
    if not total:
        print(paint([("no dead letters", "good"), (f"in {streams}", "dim")], colour=colour))
        return
    shown = f"(the newest {len(newest)} are shown)" if total > len(newest) else ""
    parts = [(f"{total} dead letters:", "name"), (counts(reasons), "plain"), (shown, "dim")]
    print(paint(parts, colour=colour))  # type: ignore[arg-type]


async def _show(choice: Choice, as_json: bool) -> None:
    async with opened(choice) as place:
        found = await place.named(choice.ids[0])
    if as_json:
        print(letter_json(found, whole=True))
        return
    for text in page(found, colour=wants_colour(sys.stdout)):
        print(text)


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, count = entry_id.partition("-")
    return int(milliseconds), int(count)
