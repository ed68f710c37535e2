"""Which dead letters a command is about, and where they are."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import Final

from redis.asyncio import Redis

from tolaria_bus.cli.follow import reach
from tolaria_bus.cli.locate import Asked, Place, locate, only_run
from tolaria_bus.cli.who import known_runs, live_runs
from tolaria_bus.cli.words import ComposeError
from tolaria_bus.configured import compat_secret, key_ring
from tolaria_bus.oona.examining import Examiner
from tolaria_bus.oona.letters import Found, LetterBox
from tolaria_bus.oona.trust import KeyRing, parse_entry_id
from tolaria_bus.oona.where import Where
from tolaria_bus.settings import load

_AGE: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class NoSuchLetter(ValueError):
    """A letter that was named isn't there; one line."""


class Streams(Enum):
    """Whose letters."""

    RUN = auto()
    SHARED = auto()
    EVERY = auto()


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters, as the command line says.

    Attributes:
        asked: Which server and run.
        which: Whose letters.
        where: Conditions on them.
        since: Later than this letter id, or this age.
        ids: These, if any are named.
    """

    asked: Asked
    which: Streams
    where: Where
    since: str | timedelta | None = None
    ids: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        asked: Asked,
        which: Streams,
        where: Sequence[str] | None = None,
        since: str | None = None,
        *,
        ids: Sequence[str] | None = None,
        everything: bool = False,
        narrow: bool = False,
    ) -> Choice:
        """Read the words.

        Args:
            asked: Which server and run.
            which: Whose letters.
            where: ``key=value`` words.
            since: A letter's id, or an age.
            ids: Letters by name.
            everything: ``--all`` was given.
            narrow: One way of choosing has to be, as letters will be changed.

        Raises:
            ComposeError: The words contradict each other or can't be read.
            BadCondition: A condition can't be understood.
        """
        for word in ids or ():
            try:
                parse_entry_id(word)
            except ValueError as error:
                raise ComposeError(str(error)) from None
        ways = sum(map(bool, (ids, where, everything)))
        if narrow and ways != 1:
            raise ComposeError("name letters by their ids, or choose them by --where, or by --all")
        if narrow and ids and since:
            raise ComposeError("--since goes with --where or --all")
        unique = tuple(dict.fromkeys(ids or ()))
        return cls(asked, which, Where.parse(where or ()), _since(since), unique)


@dataclass(frozen=True, slots=True)
class Opened:
    """Dead-letter streams of a server, ready to be read.

    Attributes:
        client: A client of the server.
        place: Where that is.
        ring: The keys at hand.
        boxes: One for each stream.
        after: Letters up to this id aren't wanted.
    """

    client: Redis
    place: Place
    ring: KeyRing
    boxes: list[LetterBox]
    after: str

    async def letters(self, choice: Choice) -> AsyncIterator[Found]:
        """Yield what is chosen, by stream, oldest first.

        Raises:
            NoSuchLetter: One that is named isn't there.
            RedisError: redis-py's.
        """
        if choice.ids:
            for letter_id in choice.ids:
                yield await self.named(letter_id)
            return
        for box in self.boxes:
            async for found in box.all(choice.where, after=self.after):
                yield found

    async def named(self, letter_id: str) -> Found:
        """Return the letter of this id.

        Raises:
            NoSuchLetter: It isn't there, or two of shared streams have the same id.
            RedisError: redis-py's.
        """
        answers = [await box.get(letter_id) for box in self.boxes]
        found = [item for item in answers if item is not None]
        streams = " or ".join(box.dead for box in self.boxes)
        if not found:
            raise NoSuchLetter(f"no letter {letter_id} in {streams}; see dlq ls")
        if len(found) > 1:
            raise NoSuchLetter(f"letter {letter_id} is in {len(found)} of {streams}: use --where")
        return found[0]


@asynccontextmanager
async def opened(choice: Choice) -> AsyncIterator[Opened]:
    """Find the server and its dead-letter streams.

    Raises:
        SettingError: A setting is wrong.
        NotLocated: There is no server, or not one run.
        BadUrl: The server's URL is none.
        ServerUnreachable: It doesn't answer.
    """
    settings, _ = load()
    place = locate(choice.asked, settings)
    ring = key_ring(settings)
    examiner = Examiner(ring, compat_secret(settings))
    async with reach(place.url, name="tolaria-dlq") as client:
        keys = await _streams(client, place, choice.which)
        boxes = [LetterBox(client, key, examiner) for key in keys]
        yield Opened(client, place, ring, boxes, await _after(client, choice.since))


async def _streams(client: Redis, place: Place, which: Streams) -> list[str]:
    names = place.streams
    shared = [names.dead_letters_of(names.fleet_control), names.dead_letters_of(names.emergency)]
    if which is Streams.SHARED:
        return shared
    if which is Streams.EVERY:
        return [names.dead(run) for run in await known_runs(client, names)] + shared
    run = place.run
    if run is None:
        # Letters outlive their worker, so a run that has ended will do.
        run = only_run(await live_runs(client, names) or await known_runs(client, names), place)
    return [names.dead(run)]


async def _after(client: Redis, since: str | timedelta | None) -> str:
    if since is None:
        return "-"
    if isinstance(since, str):
        return since
    seconds, micros = await client.time()
    begin = seconds * 1000 + micros // 1000 - int(since.total_seconds() * 1000)
    return f"{max(begin, 0)}-0"


def _since(text: str | None) -> str | timedelta | None:
    if text is None:
        return None
    if age := _AGE.fullmatch(text):
        return timedelta(**{_UNITS[age[2]]: int(age[1])})
    try:
        parse_entry_id(text)
    except ValueError:
        raise ComposeError(f"--since {text}: must be a letter's id, or an age as 30m") from None
    return text
