"""Entries of several streams in the order of their ids, and what becomes of a lost server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.oona.connection import ServerUnreachable, connect, redacted

BLOCK: Final = timedelta(seconds=2)
"""How long one read waits in the server."""
PAGE: Final = 500
"""Entries of one stream taken at once."""
Fields = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as the server gave it."""

    stream: str
    entry_id: str
    fields: Fields | None


@asynccontextmanager
async def reach(url: str, *, name: str, block: timedelta | None = None) -> AsyncIterator[Redis]:
    """A client of a server that answers.

    Raises:
        BadUrl: The URL can't name a server.
        ServerUnreachable: It doesn't answer or refuses the password; one line.
    """
    async with connect(url, name=name, block=block) as client:
        try:
            await client.ping()
        except (RedisError, OSError) as error:
            raise ServerUnreachable(f"server {redacted(url)}: {reason_of(error)}") from None
        yield client


def reason_of(error: Exception) -> str:
    """The error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


async def last_ids(client: Redis, streams: Iterable[str]) -> dict[str, str]:
    """The id of each stream's newest entry, ``0-0`` where there is none: what comes later is new.

    Raises redis-py's errors.
    """
    names = list(streams)
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.xrevrange(name, count=1)
    newest = await pipe.execute()
    return {
        name: entries[0][0].decode() if entries else "0-0"
        for name, entries in zip(names, newest, strict=True)
    }


class Follower:
    """Reads on from a place in each of several streams.

    Attributes:
        cursors: Stream to the id of its last entry that was handed out.
    """

    def __init__(self, cursors: Mapping[str, str], page: int = PAGE) -> None:
        self.cursors = dict(cursors)
        self._page = page

    async def read(self, client: Redis, block: timedelta | None = None) -> list[Entry]:
        """Return what came since, ordered by id over all streams; waits ``block`` for some.

        Raises redis-py's errors; then nothing is skipped at the next call.
        """
        if not self.cursors:
            return []
        milliseconds = None if block is None else max(1, round(block.total_seconds() * 1000))
        cursors: Any = dict(self.cursors)
        reply: Any = await client.xread(cursors, count=self._page, block=milliseconds)
        pages = {name.decode(): entries for name, entries in reply or []}
        # A full page may be followed by entries older than what another stream has: those of the
        # others that are newer than its last wait for the next call.
        full = [order(entries[-1][0]) for entries in pages.values() if len(entries) >= self._page]
        last = min(full, default=None)
        found = [
            (order(entry_id), Entry(name, entry_id.decode(), fields))
            for name, entries in pages.items()
            for entry_id, fields in entries
            if last is None or order(entry_id) <= last
        ]
        found.sort(key=lambda pair: (pair[0], pair[1].stream))
        for _, entry in found:
            self.cursors[entry.stream] = entry.entry_id
        return [entry for _, entry in found]


def order(entry_id: bytes) -> tuple[int, int]:
    """An entry's id as numbers, by which entries of all streams of a server are ordered."""
    milliseconds, _, count = entry_id.partition(b"-")
    return int(milliseconds), int(count)
