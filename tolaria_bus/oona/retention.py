"""How long entries stay: by age and length, but never past what a living group has yet to read.

A janitor goes round over streams, with one script for each. An entry goes when it is too old or
one too many, *and* every group that lives has read and finished it and all before it. A group
that stops reading therefore holds its stream; two things end that. A group that gave no sign of
life for a week is removed, with an event. And each stream has a hard limit, kept at publishing and
here, that cuts whether read or not; that it did, and which groups lost entries, are events too.

**Signs of life.** A janitor gives them for the groups of its own program. Of other groups the
server knows when a consumer last asked for something, so that readers in other languages need not
do anything; a group found for the first time has the whole time before it. After an hour in which
no janitor went round (everything was stopped, or the server's clock was set) nobody is removed for
another hour. All times are the server's. The groups of a run that has ended stay on the shared
streams until their time is over; only then does what they hold back go.

**Many janitors** share the work: whoever comes first in an interval does it, for all.

**What is lost** by a group is known exactly while it stands before the gap. Of one that has read on
since the last round, and may have been quicker than the cut, the most that it can be is told. What
was cut before the first round that found a group isn't told, or not all of it.

Events: ``group_removed`` (stream, group, pending, unread, idle_days), ``entries_cut`` (stream,
group, unread, pending): entries that a group hadn't read, or hadn't finished; ``length_limit``
(stream, entries, limit): the hard limit has begun to cut; and those of :class:`Attempts`.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.events import OnEvent, log_event, reason_of
from tolaria_bus.oona.scripts import Argument, Script
from tolaria_bus.oona.streams import Streams, dead_letters_of, groups_of

INTERVAL: Final = timedelta(seconds=30)
LEASE: Final = timedelta(days=7)
"""A group without a sign of life for so long is removed."""

_GAP: Final = timedelta(hours=1)
"""Without a round for so long, absent groups get as long to come back."""
_MOST: Final = 10_000
"""Entries that one call removes: a few milliseconds of the server's time."""
_CALLS: Final = 100
"""Calls for one stream in one round; what is left then is for the next."""
_TRIM: Final = Script("trim")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long the entries of a stream stay.

    Attributes:
        length: So many are kept, where groups allow it.
        age: So long they are kept, where groups allow it; ``None``: for ever.
        hard: The length that is never exceeded (by more than a node of the server's, 100 entries).
        ordinary: Reaching ``hard`` is ordinary: nothing is told of it.
    """

    length: int
    age: timedelta | None
    hard: int
    ordinary: bool = False


def retentions(
    streams: Streams,
    run: str,
    *,
    telemetry: int = 100_000,
    limit: int = 100_000,
    age: timedelta = timedelta(days=7),
    dead_age: timedelta = timedelta(days=30),
) -> dict[str, Retention]:
    """What holds for the streams of a run, and for those that all runs share, by key.

    A run's commands have no age: they wait for its worker, and are deleted when they are done.

    Args:
        streams: Names of the keys.
        run: The run's id.
        telemetry: Length of the telemetry stream.
        limit: Hard limit of each other stream; half of it is kept where groups allow that.
        age: How long entries stay.
        dead_age: How long dead letters do.
    """
    usual = Retention(limit // 2, age, limit)
    letters = Retention(limit // 2, dead_age, limit)
    shared = (streams.fleet_control, streams.emergency)
    return {
        streams.control(run): Retention(limit, None, limit),
        streams.state(run): usual,
        streams.outcomes(run): usual,
        streams.reports(run): usual,
        streams.telemetry(run): Retention(telemetry, age, telemetry, ordinary=True),
        streams.dead(run): letters,
        **dict.fromkeys(shared, usual),
        **{dead_letters_of(stream): letters for stream in shared},
    }


class Janitor:
    """Goes round over streams.

    Args:
        client: Any client.
        kept: What is kept, by key of the stream.
        own: Groups whose consumers run in this program, by key of the stream.
        lease: See ``LEASE``.
        interval: Between two rounds, of all janitors of a stream together.
        on_event: Told what happens.
        chance: Spreads the rounds; one of its own, so that nothing else's draws are disturbed.
    """

    def __init__(
        self,
        client: Redis,
        kept: Mapping[str, Retention],
        *,
        own: Mapping[str, Collection[str]] | None = None,
        lease: timedelta = LEASE,
        interval: timedelta = INTERVAL,
        on_event: OnEvent = log_event,
        chance: random.Random | None = None,
    ) -> None:
        self._client = client
        self._kept = dict(kept)
        self._own = dict(own or {})
        self._lease = lease
        self._interval = interval
        self._on_event = on_event
        self._chance = chance or random.Random()
        self._attempts = Attempts("retention", on_event)

    async def run(self) -> None:
        """Go round until cancelled; troubles are told and don't end it."""
        while True:
            wait = self._interval.total_seconds() * self._chance.uniform(0.75, 1.25)
            try:
                await self.round()
            except (RedisError, OSError) as error:
                wait = max(wait, self._attempts.failed(error))
            await anyio.sleep(wait)

    async def round(self) -> int:
        """Look after each stream once; how many entries went.

        What the server refuses for one stream is told, and the others go on.

        Raises:
            RedisError, OSError: The server can't be reached.
        """
        trimmed = 0
        refused: dict[str, int] = {}
        for stream in self._kept:
            try:
                trimmed += await self._look_after(stream)
            except ResponseError as error:
                reason = f"{stream}: {reason_of(error)}"
                refused[reason] = refused.get(reason, 0) + 1
        self._attempts.answered(refused)
        return trimmed

    async def _look_after(self, stream: str) -> int:
        trimmed = 0
        # Less than the shortest wait, so that a janitor alone always finds its turn.
        enough = self._interval * 0.7
        for _ in range(_CALLS):
            match await self._trim(stream, enough):
                case [b"SWEPT", gone, more, cut, removed, losses]:
                    trimmed += gone
                    self._tell_removed(stream, removed)
                    self._tell_cut(stream, cut, losses)
                    if not more:
                        break
                    enough = timedelta()
                case [b"TYPE", key, kind]:
                    raise ResponseError(f"{key.decode()} is a {kind.decode()}")
                case _:
                    break
        return trimmed

    async def _trim(self, stream: str, enough: timedelta) -> Any:
        kept = self._kept[stream]
        arguments: list[Argument] = [
            _ms(enough),
            _ms(self._lease),
            _ms(min(_GAP, self._lease)),
            "" if kept.age is None else _ms(kept.age),
            kept.length,
            kept.hard,
            _MOST,
            *self._own.get(stream, ()),
        ]
        return await _TRIM.run(self._client, [stream, groups_of(stream)], arguments)

    def _tell_removed(self, stream: str, removed: Sequence[Any]) -> None:
        for group, pending, unread, idle in _fours(removed):
            detail = {
                "stream": stream,
                "group": group.decode(errors="replace"),
                "pending": str(pending),
                "unread": "unknown" if unread == b"" else str(unread),
                "idle_days": f"{int(idle) / _ms(timedelta(days=1)):.1f}",
            }
            self._on_event("group_removed", detail)

    def _tell_cut(self, stream: str, cut: int, losses: Sequence[Any]) -> None:
        kept = self._kept[stream]
        if kept.ordinary:
            return
        if cut:
            detail = {"stream": stream, "entries": str(cut), "limit": str(kept.hard)}
            self._on_event("length_limit", detail)
        for group, unread, doubtful, pending in _fours(losses):
            detail = {
                "stream": stream,
                "group": group.decode(errors="replace"),
                "unread": f"up to {unread + doubtful}" if doubtful else str(unread),
                "pending": str(pending),
            }
            self._on_event("entries_cut", detail)


def _fours(flat: Sequence[Any]) -> list[Sequence[Any]]:
    return [flat[start : start + 4] for start in range(0, len(flat), 4)]


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)
