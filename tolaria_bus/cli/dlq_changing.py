"""``dlq replay`` and ``dlq purge``: what is done to letters, and what became of each."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import anyio
import orjson

from tolaria_bus.cli.dlq_place import Choice, Opened, opened
from tolaria_bus.cli.leaving import interrupt_at_once
from tolaria_bus.cli.letter_lines import counts, what
from tolaria_bus.cli.style import Part, Style, paint, wants_colour
from tolaria_bus.cli.who import user_name
from tolaria_bus.cli.words import ComposeError
from tolaria_bus.leyline.codec import MAX_MESSAGE_BYTES
from tolaria_bus.oona.letters import Found
from tolaria_bus.oona.replay import Fate, Result, purge, replay
from tolaria_bus.oona.resealing import Resealer, Terms
from tolaria_bus.oona.tracing import Tracer

NOT_ALL: Final = 1
"""Exit code where some letters were refused, or gone."""
_STYLES: Final[dict[Fate, Style]] = {Fate.REFUSED: "bad", Fate.GONE: "warn"}
_HINTS: Final = {
    "unbelieved": "look at it (dlq show), then --resign to sign it as yours",
    "unreadable": "put a message in its place with --json",
    "truncated": "put a message in its place with --json",
    "no_key": "set TOLARIA_SIGNING_KEYS",
}


@dataclass(frozen=True, slots=True)
class Changing:
    """How letters are changed.

    Attributes:
        limit: So many at most, where they aren't named.
        dry_run: Only say what would be done.
        as_json: JSON lines instead of readable ones.
    """

    limit: int
    dry_run: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Mending:
    """How letters are mended on their way.

    Attributes:
        json: A message in place of the letter's: JSON, the name of a file with it, or ``-``.
        deadline: Seconds from now.
        resign: Also what isn't believed.
    """

    json: str | None = None
    deadline: float | None = None
    resign: bool = False

    def terms(self, by: str) -> Terms:
        """Return them for the bus.

        Raises:
            ComposeError: A value is out of range, or a file can't be read.
        """
        message = _message(self.json)
        try:
            deadline = None if self.deadline is None else timedelta(seconds=self.deadline)
            return Terms(by, self.resign, deadline, message)
        except (ValueError, OverflowError):
            text = f"--deadline {self.deadline:g}: must be 0.001 to 4294967 seconds"
            raise ComposeError(text) from None


def replay_letters(choice: Choice, changing: Changing, mending: Mending) -> int:
    """Replay letters and print what became of each.

    Returns:
        The exit code: 0, or ``NOT_ALL``.

    Raises:
        ComposeError: The words contradict each other or are out of range.
        NoSuchLetter: One that is named isn't there.
        NotLocated: There is no server, or not one run.
        ServerUnreachable: It doesn't answer.
    """
    if mending.json is not None and len(choice.ids) != 1:
        raise ComposeError("--json mends one letter: name it by its id")
    by = f"operator/{user_name()}"
    terms = mending.terms(by)
    interrupt_at_once()
    return anyio.run(_replay, choice, changing, terms)


def purge_letters(choice: Choice, changing: Changing, *, yes: bool) -> int:
    """Remove letters and print what became of each.

    Returns:
        The exit code: 0, or ``NOT_ALL``.

    Raises:
        ComposeError: There is nobody to ask.
        NoSuchLetter: One that is named isn't there.
        NotLocated: There is no server, or not one run.
        ServerUnreachable: It doesn't answer.
    """
    asks = not (yes or changing.dry_run)
    if asks and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ComposeError("purge removes letters for good: say --yes where nobody can be asked")
    interrupt_at_once()
    return anyio.run(_purge, choice, changing, asks)


async def _replay(choice: Choice, changing: Changing, terms: Terms) -> int:
    async with opened(choice) as place:
        if terms.resign and not place.ring.enabled:
            raise ComposeError("--resign signs with a key of yours: set TOLARIA_SIGNING_KEYS")
        await _all_there(place, choice)
        resealer = Resealer(place.ring, terms)
        told = _Told(changing)
        for dead, letters in _by_stream(place, choice, changing, told):
            tracer = Tracer(place.client, place.place.streams, dead, terms.by, place.ring)
            results = replay(place.client, letters, resealer, tracer, dry_run=changing.dry_run)
            await told.tell(results)
        return told.end()


async def _purge(choice: Choice, changing: Changing, asks: bool) -> int:
    async with opened(choice) as place:
        await _all_there(place, choice)
        if asks and not await _confirmed(place, choice, changing):
            return NOT_ALL
        by = f"operator/{user_name()}"
        told = _Told(changing)
        for dead, letters in _by_stream(place, choice, changing, told):
            tracer = Tracer(place.client, place.place.streams, dead, by, place.ring)
            await told.tell(purge(place.client, letters, tracer, dry_run=changing.dry_run))
        return told.end()


async def _all_there(place: Opened, choice: Choice) -> None:
    """Raise NoSuchLetter before anything is done, if one that is named isn't there."""
    for letter_id in choice.ids:
        await place.named(letter_id)


class _Told:
    """Prints what became of letters, and remembers how it went."""

    def __init__(self, changing: Changing) -> None:
        self.seen = 0
        self.more_after = ""
        self._changing = changing
        self._fates: Counter[Fate] = Counter()
        self._colour = wants_colour(sys.stdout)

    async def tell(self, results: AsyncIterator[Result]) -> None:
        """Print each result as it comes."""
        async for result in results:
            self._fates[result.fate] += 1
            if self._changing.as_json:
                print(_json(result), flush=True)
            else:
                print(paint(_line(result), colour=self._colour), flush=True)

    def end(self) -> int:
        """Print the sum; the exit code."""
        good = all(fate.is_good for fate in self._fates)
        if not self._changing.as_json:
            told = {fate.value: count for fate, count in self._fates.items()}
            parts: list[Part] = [(counts(told) or "no such letters", "good" if good else "warn")]
            if self.more_after:
                parts.append((f"there are more: --limit N, or --since {self.more_after}", "note"))
            print(paint(parts, colour=self._colour))
        return 0 if good else NOT_ALL


def _by_stream(
    place: Opened, choice: Choice, changing: Changing, told: _Told
) -> list[tuple[str, AsyncIterator[Found]]]:
    """The letters that are chosen, by their dead-letter stream."""

    async def chosen(dead: str) -> AsyncGenerator[Found, None]:
        if choice.ids:
            for letter_id in choice.ids:
                found = await place.named(letter_id)
                if found.dead == dead:
                    yield found
            return
        box = next(box for box in place.boxes if box.dead == dead)
        last = place.after
        async with aclosing(box.all(choice.where, after=place.after)) as letters:
            async for found in letters:
                if told.seen == changing.limit:
                    told.more_after = last
                    return
                told.seen += 1
                last = found.entry_id
                yield found

    return [(box.dead, chosen(box.dead)) for box in place.boxes]


async def _confirmed(place: Opened, choice: Choice, changing: Changing) -> bool:
    reasons: Counter[str] = Counter()
    told = _Told(changing)
    for _, letters in _by_stream(place, choice, changing, told):
        async for found in letters:
            reasons[found.reason] += 1
    if not reasons:
        return True
    question = f"purge {sum(reasons.values())} dead letters ({counts(reasons)})? [y/N] "
    try:
        # Not on a thread: Ctrl-C has to end it, and there is nothing else to be done meanwhile.
        answer = input(question)  # noqa: ASYNC250
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


def _line(result: Result) -> list[Part]:
    found = result.found
    parts: list[Part] = [
        (result.fate.value.upper(), _STYLES.get(result.fate, "good")),
        (found.entry_id, "name"),
        (found.reason, "plain"),
    ]
    if result.fate is Fate.REFUSED:
        hint = _HINTS.get(result.code, "")
        return [*parts, (f"{result.code}: {result.reason}", "warn"), (hint and f"→ {hint}", "note")]
    parts += what(found)
    if result.entry_id and found.letter is not None:
        parts.append((f"→ entry {result.entry_id} of {found.letter.stream}", "note"))
    return parts


def _json(result: Result) -> str:
    found = result.found
    written = {
        "id": found.entry_id,
        "dead": found.dead,
        "reason": found.reason,
        "fate": result.fate.name,
        "commandId": found.contents.command_id if found.contents is not None else "",
    }
    if result.entry_id and found.letter is not None:
        written |= {"stream": found.letter.stream, "entryId": result.entry_id}
    if result.code:
        written |= {"code": result.code, "why": result.reason}
    return orjson.dumps(written).decode()


def _message(word: str | None) -> bytes | None:
    if word is None:
        return None
    if word == "-":
        return sys.stdin.buffer.read(MAX_MESSAGE_BYTES + 1)
    if word.lstrip().startswith("{"):
        return word.encode("utf-8", "surrogateescape")
    try:
        with Path(word).open("rb") as file:
            return file.read(MAX_MESSAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ComposeError(f"--json: must be JSON or a file with it: {error}") from None
