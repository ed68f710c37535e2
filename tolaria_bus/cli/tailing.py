"""Following streams over lost connections, and printing what comes."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from tolaria_bus.cli.follow import BLOCK, Entry, Follower, reach, reason_of
from tolaria_bus.cli.locate import Place
from tolaria_bus.cli.opening import Reader
from tolaria_bus.cli.render import render_json, render_line
from tolaria_bus.cli.style import clean, wants_colour
from tolaria_bus.cli.watched import concerns, run_streams, shared_streams
from tolaria_bus.cli.who import known_runs
from tolaria_bus.oona.backoff import Backoff
from tolaria_bus.oona.connection import redacted

_RUNS_SECONDS: Final = 2.0
"""How often a server is asked for runs that are new."""
_LARGEST_COUNT: Final = 2**64 - 1
"""Of the second part of an entry's id."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to follow and how to show it.

    Attributes:
        kinds: Of streams; see ``watched.KINDS``.
        since: Begin after this entry id; ``None``: with what comes from now on.
        count: Lines after which it is enough.
        run: Only what concerns this run, in the streams of all runs too.
        follow: Wait for more when all is shown.
        as_json: JSON lines instead of readable ones.
    """

    kinds: tuple[str, ...]
    since: str | None = None
    count: int | None = None
    run: str | None = None
    follow: bool = True
    as_json: bool = False


class Tail:
    """Prints entries as they come.

    Args:
        wanted: What and how.
        place: The server, and the run if one was named.
        reader: Opens the entries.
        monotonic: Seconds, for the question after new runs.
    """

    def __init__(
        self,
        wanted: Wanted,
        place: Place,
        reader: Reader,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = wanted
        self._place = place
        self._reader = reader
        self._monotonic = monotonic
        self._follower = Follower({})
        self._begin = wanted.since
        self._asked_at = float("-inf")
        self._printed = 0

    async def show(self) -> None:
        """Print until there is enough.

        Raises:
            BadUrl: The server's URL is none.
            ServerUnreachable: It doesn't answer at the start; later it is waited for.
            RedisError: It refuses what is asked, as it would again.
            BrokenPipeError: Nobody reads any more.
        """
        async with aclosing(self._batches()) as batches:
            async for entries in batches:
                for entry in entries:
                    if self._printed != self._wanted.count:
                        self._print(entry)
                # Not with every line: a flood is written in large pieces.
                sys.stdout.flush()
                if self._printed == self._wanted.count:
                    return

    def _print(self, entry: Entry) -> None:
        shown = self._reader.read(entry.stream, entry.entry_id, entry.fields)
        if self._wanted.run is not None and not concerns(shown, self._wanted.run):
            return
        if self._wanted.as_json:
            print(render_json(shown))
        else:
            print(render_line(shown, colour=wants_colour(sys.stdout)))
        self._printed += 1

    async def _batches(self) -> AsyncGenerator[list[Entry], None]:
        backoff, reached, lost = Backoff(), False, ""
        while True:
            try:
                async with reach(self._place.url, name="tolaria-tail", block=BLOCK) as client:
                    if lost:
                        _note(f"server {redacted(self._place.url)} is back")
                    reached, lost = True, ""
                    backoff.reset()
                    async with aclosing(self._read(client)) as batches:
                        async for entries in batches:
                            yield entries
                    return
            except (RedisError, OSError) as error:
                if not reached or not _will_pass(error):
                    raise
                if not lost:
                    lost = reason_of(error)
                    _note(f"{lost}; waiting for the server")
            await anyio.sleep(backoff.next())

    async def _read(self, client: Redis) -> AsyncGenerator[list[Entry], None]:
        while True:
            await self._look_for_runs(client)
            entries = await self._follower.read(client, BLOCK if self._wanted.follow else None)
            if entries:
                yield entries
            elif not self._wanted.follow:
                return
            elif not self._follower.cursors:
                # No run yet, and no shared stream is asked for.
                await anyio.sleep(_RUNS_SECONDS)

    async def _look_for_runs(self, client: Redis) -> None:
        """Take on the streams of runs that are new; at the start, those of all."""
        if self._monotonic() - self._asked_at < _RUNS_SECONDS:
            return
        if self._begin is None:
            self._begin = await _now(client)
        named = self._place.run
        keys = shared_streams(self._wanted.kinds, self._place.streams)
        runs = [named] if named is not None else await known_runs(client, self._place.streams)
        for run in runs:
            keys += run_streams(self._wanted.kinds, self._place.streams, run)
        for key in keys:
            self._follower.cursors.setdefault(key, self._begin)
        self._asked_at = float("inf") if named is not None else self._monotonic()


async def _now(client: Redis) -> str:
    """The id that entries of this millisecond and later come after, by the server's clock."""
    seconds, micros = await client.time()
    return f"{seconds * 1000 + micros // 1000 - 1}-{_LARGEST_COUNT}"


def _will_pass(error: Exception) -> bool:
    """Tell whether the server may answer differently in a while."""
    # What it refuses (a right, a type) is a ResponseError; not so a server that is loading.
    return isinstance(error, RedisConnectionError) or not isinstance(error, ResponseError)


def _note(text: str) -> None:
    print(f"tolaria-bus: {clean(text)}", file=sys.stderr, flush=True)
