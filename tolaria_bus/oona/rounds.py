"""What a consumer reads next: its own pending entries, what the dead left, then what is new."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

import anyio
from redis.exceptions import RedisError, ResponseError

from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.events import OnEvent
from tolaria_bus.oona.in_flight import InFlight
from tolaria_bus.oona.portion import Portion
from tolaria_bus.oona.reading import Delivered, GroupReader, Member

IN_HAND_BYTES: Final = 32 << 20
"""Of large entries that were read and aren't finished: with so much nothing more is read."""

_SWEEP_EVERY: Final = 1.0
"""Seconds between two looks for what others left; half of ``min_idle`` where that is less."""


class Rounds:
    """The reads of one consumer, one after the other; see ``consumer`` for their order.

    Events: ``group_recreated`` (stream, group), and those of :class:`Attempts`.

    Args:
        reader: Its group's server side.
        member: Which consumer.
        in_flight: The entries that it has.
        attempts: Tells of troubles.
        gone: Told of entries of others that were deleted while they were pending.
        start: Where a group that never was begins.
        block: How long a read waits in the server.
        max_in_flight: Entries handed over and not finished, at most; reading waits then.
        min_idle: How long others may have an entry without renewing their claim.
        on_event: Told what happens.
        monotonic: Seconds.

    Attributes:
        beginnings: How often it was begun anew with what is pending: what was read before then is
            left.
        next_sweep: When to look again for what others left.
    """

    def __init__(
        self,
        reader: GroupReader,
        member: Member,
        in_flight: InFlight,
        attempts: Attempts,
        *,
        gone: Callable[[Sequence[str]], None],
        start: str,
        block: timedelta,
        max_in_flight: int,
        min_idle: timedelta,
        on_event: OnEvent,
        monotonic: Callable[[], float],
    ) -> None:
        self.beginnings = 0
        self.next_sweep = monotonic()
        self._reader = reader
        self._member = member
        self._in_flight = in_flight
        self._attempts = attempts
        self._tell_gone = gone
        self._start = start
        self._block = block
        self._max_in_flight = max_in_flight
        self._min_idle = min_idle
        self._on_event = on_event
        self._monotonic = monotonic
        self._prepared = False
        self._gone = False
        self._portion = Portion()
        self._own_after: str | None = "0"
        self._wait = 0.0
        # A generator of its own: nothing here may draw from the one that training shares.
        self._random = random.Random()
        self._sweep_every = min(_SWEEP_EVERY, min_idle.total_seconds() / 2)

    async def prepare(self) -> None:
        """Make the group, if need be: what is sent from now on is read.

        Raises:
            RedisError: redis-py's.
        """
        await self._reader.create(self._start)
        self._prepared = True

    async def read(self) -> list[Delivered] | None:
        """One round, ``None`` if it failed; the next waits then.

        Whether what was read can be worked on is known later: only then is a trouble over.
        """
        wait, self._wait = self._wait, 0.0
        if wait:
            await anyio.sleep(wait)
        try:
            entries = await self._fetch()
        except ResponseError as error:
            if str(error).startswith("UNBLOCKED"):
                # The key went, or the server became a replica: the next read says which.
                return None
            if str(error).startswith("NOGROUP"):
                self._prepared, self._gone, self._start = False, True, "0"
            else:
                self.failed(error)
            return None
        except (RedisError, OSError) as error:
            self.failed(error)
            return None
        self._portion.came(entries)
        self._attempts.reached()
        return entries

    def failed(self, error: RedisError | OSError) -> None:
        """Something was perhaps delivered that we don't know of: wait, then look."""
        self._own_after = "0"
        self.beginnings += 1
        self._wait = self._attempts.failed(error)

    async def _fetch(self) -> list[Delivered]:
        if not self._prepared:
            await self.prepare()
            if self._gone:
                self._gone = False
                self._own_after = "0"
                detail = {"stream": self._member.stream, "group": self._member.group}
                self._on_event("group_recreated", detail)
        in_hand = len(self._in_flight) + len(self._in_flight.held)
        room = min(self._portion.entries, self._max_in_flight - in_hand)
        if room <= 0 or self._in_flight.large_bytes >= IN_HAND_BYTES:
            with anyio.move_on_after(self._block.total_seconds()):
                await self._in_flight.change()
            return []
        if self._own_after is not None:
            beginning = self.beginnings
            own = await self._reader.own(self._own_after, room)
            if beginning == self.beginnings:
                self._own_after = own[-1].entry_id if own else None
            if own:
                return own
        if self._monotonic() >= self.next_sweep:
            swept = await self._sweep(room)
            if swept:
                return swept
        return await self._reader.new(room, self._block)

    async def _sweep(self, room: int) -> list[Delivered]:
        """Entries of dead consumers."""
        known = len(self._in_flight) + len(self._in_flight.held)
        sweep = await self._reader.abandoned(self._min_idle, room, known)
        if not sweep.more:
            # Spread, so that the consumers of a group don't all look at once.
            spread = self._random.uniform(0.75, 1.25)
            self.next_sweep = self._monotonic() + self._sweep_every * spread
        # Our own may be among them: those are counted where they are taken.
        ours = self._in_flight.held
        deleted = [
            entry_id
            for entry_id in sweep.deleted
            if entry_id not in ours and not self._in_flight.handed_out_before(entry_id)
        ]
        if deleted:
            self._tell_gone(deleted)
        return sweep.entries
