"""What only the server can count: how long its streams are, and what groups have yet to read.

Asked every few seconds in one round trip, so that whoever scrapes never waits for the server and
a server in trouble isn't asked more often than usual.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.connection import ServerClock
from tolaria_bus.oona.events import OnEvent, log_event

EVERY: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group as the server sees it.

    Attributes:
        stream: Key of its stream.
        name: The group.
        lag: Entries that it has yet to read; ``None``: the server can't tell.
        pending: Entries that were delivered and aren't finished.
    """

    stream: str
    name: str
    lag: int | None
    pending: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment.

    Attributes:
        taken_at: When, on the sampler's clock.
        depth: Entries of each stream.
        groups: Every group of them.
    """

    taken_at: float
    depth: dict[str, int] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()


class Sampler:
    """Asks the server every few seconds.

    Events: those of :class:`Attempts` for the connection ``metrics``.

    Args:
        client: Any client that doesn't block.
        streams: Keys of the streams.
        every: How often.
        clock: Kept in step with the server's, if given: for latencies.
        on_event: Told of troubles.
        monotonic: Seconds.

    Attributes:
        sample: The last one; ``None``: there is none yet.
    """

    def __init__(
        self,
        client: Redis,
        streams: Sequence[str],
        *,
        every: timedelta = EVERY,
        clock: ServerClock | None = None,
        on_event: OnEvent = log_event,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sample: Sample | None = None
        self._client = client
        self._streams = list(streams)
        self._every = every.total_seconds()
        self._clock = clock
        self._attempts = Attempts("metrics", on_event)
        self._monotonic = monotonic

    @property
    def age(self) -> float | None:
        """Seconds since the last sample; ``None``: there is none yet."""
        return None if self.sample is None else self._monotonic() - self.sample.taken_at

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            wait = self._every
            try:
                await self.take()
            except (RedisError, OSError) as error:
                wait = max(wait, self._attempts.failed(error))
            else:
                self._attempts.answered()
            await anyio.sleep(wait)

    async def take(self) -> Sample:
        """Ask once.

        Raises:
            RedisError, OSError: The server can't be asked; the last sample stays.
        """
        if self._clock is not None:
            await self._clock.sync(self._client)
        pipe = self._client.pipeline(transaction=False)
        for stream in self._streams:
            pipe.xlen(stream)
            pipe.xinfo_groups(stream)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        depth: dict[str, int] = {}
        groups: list[Group] = []
        for stream, length, found in zip(self._streams, replies[::2], replies[1::2], strict=True):
            if isinstance(length, Exception):
                raise length
            depth[stream] = length
            # A stream that isn't there has no groups; the server calls that an error.
            if not isinstance(found, ResponseError):
                groups += [_group(stream, one) for one in found]
        self.sample = Sample(self._monotonic(), depth, tuple(groups))
        return self.sample


def _group(stream: str, found: dict[str, Any]) -> Group:
    name = found["name"].decode("utf-8", "replace")
    return Group(stream, name, found["lag"], int(found["pending"]))
