"""Entries that a consumer has and that aren't finished: their claims, and their acknowledgements.

An entry that was read is *held*, until it is handed over; then it is *in flight*, until it is
finished. The claims on both are extended. Acknowledgements are sent in groups: all that came
while the last group was on its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.oona import scripts
from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.events import OnEvent
from tolaria_bus.oona.reading import Delivered, Member

_GROUP: Final = 500
"""Entries acknowledged, or claims extended, in one call."""
_REMEMBERED: Final = 10_000
"""Finished entries, at least, that are known if the server hands them out again."""
_LARGE: Final = 16 << 10
"""Bytes of an entry whose size is kept in mind: a thousand smaller ones are no burden."""


class InFlight:
    """The entries that a consumer has, by id. ``len`` counts those in the hands of handlers.

    Events: those of :class:`Attempts`; ``claims_lost`` (stream, entries): another consumer has
    taken entries that are being worked on here.

    Args:
        client: Not the one that blocks.
        member: Which consumer has them.
        on_event: Told of troubles.

    Attributes:
        acknowledged: How many acknowledgements the server has.
        held: Entries that were read and not handed over.
    """

    def __init__(self, client: Redis, member: Member, on_event: OnEvent) -> None:
        self.acknowledged = 0
        self.held: set[str] = set()
        self._client = client
        self._member = member
        self._on_event = on_event
        self._attempts = Attempts(f"{member.stream} acknowledgements", on_event)
        self._entries: set[str] = set()
        # Bytes of the large ones among those held or in flight.
        self._large: dict[str, int] = {}
        # On their way to the dead letters: the server may be done with one before we hear of it.
        self._dying: set[str] = set()
        self._claims_lost: set[str] = set()
        # Finished, by id: acknowledged here, or by somebody else. The younger and the older ones.
        self._finished: dict[str, bool] = {}
        self._finished_before: dict[str, bool] = {}
        self._waiting: dict[str, anyio.Event | None] = {}
        self._running = False
        self._sending = anyio.Lock()
        self._renewing = anyio.Lock()
        self._asked: anyio.Event | None = None
        self._changed: anyio.Event | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def reconnects(self) -> int:
        """How often the connection of the acknowledgements was lost and came back."""
        return self._attempts.reconnects

    @property
    def large_bytes(self) -> int:
        """What the large entries among those held or in flight have together."""
        return sum(self._large.values())

    def ids(self) -> frozenset[str]:
        """Of all entries in flight."""
        return frozenset(self._entries)

    def kept(self) -> frozenset[str]:
        """Of entries that nobody else may have.

        Those in flight, those that others finish, those whose acknowledgement is on its way.
        """
        forgotten = {
            entry_id
            for finished in (self._finished, self._finished_before)
            for entry_id, acknowledged in finished.items()
            if not acknowledged
        }
        return self.ids() | forgotten | self._waiting.keys()

    def hold(self, entries: Sequence[Delivered]) -> None:
        """Entries were read."""
        self.held.update([entry.entry_id for entry in entries])
        self._large.update(
            [(entry.entry_id, entry.size) for entry in entries if entry.size > _LARGE]
        )

    def let_go(self, entry_ids: Iterable[str]) -> None:
        """Entries that were read won't be handed over; the server delivers them again."""
        for entry_id in entry_ids:
            self.held.discard(entry_id)
            self._large.pop(entry_id, None)

    async def let_go_all(self) -> None:
        """Nothing more will be handed over: from now on, claims on what was read aren't extended.

        Returns when none is being extended any more.
        """
        self.let_go(list(self.held))
        async with self._renewing:
            pass

    def add(self, entry_id: str) -> bool:
        """An entry is about to be handed over; false if another consumer has taken it by now."""
        self.held.discard(entry_id)
        if entry_id in self._claims_lost:
            self._claims_lost.discard(entry_id)
            self._large.pop(entry_id, None)
            return False
        self._entries.add(entry_id)
        return True

    def take_on(self, entry_id: str) -> bool:
        """A new entry is about to be handed over; false if it must not be.

        The two calls that it stands for are made only where one of them might say no.
        """
        if (
            self._claims_lost
            or entry_id in self._entries
            or entry_id in self._finished
            or entry_id in self._finished_before
        ):
            return not self.handed_out_before(entry_id) and self.add(entry_id)
        self.held.discard(entry_id)
        self._entries.add(entry_id)
        return True

    def add_dying(self, entry_id: str) -> None:
        """An entry is on its way to the dead letters: until it is there, it is in our hands."""
        self.add(entry_id)
        self._dying.add(entry_id)

    def remove(self, entry_id: str) -> None:
        """An entry isn't in a handler's hands any more, finished or not."""
        self._entries.discard(entry_id)
        if self._dying:
            self._dying.discard(entry_id)
        if self._large:
            self._large.pop(entry_id, None)
        if self._claims_lost:
            self._claims_lost.discard(entry_id)
        if self._changed is not None:
            self._changed.set()

    def finish(self, entry_id: str, *, acknowledged: bool) -> None:
        """An entry is finished, or will be by somebody else."""
        self.held.discard(entry_id)
        self.remove(entry_id)
        self._finished[entry_id] = acknowledged
        if len(self._finished) >= _REMEMBERED:
            self._finished_before, self._finished = self._finished, {}

    def handed_out_before(self, entry_id: str) -> bool:
        """Is an entry that the server delivers in our hands, or finished?

        After a lost reply, and in a group made anew, entries come again. One that we have
        acknowledged is acknowledged once more.
        """
        if entry_id in self._entries:
            self.held.discard(entry_id)
            return True
        acknowledged = self._finished.get(entry_id)
        if acknowledged is None:
            acknowledged = self._finished_before.get(entry_id)
        if acknowledged is None:
            return False
        self.let_go([entry_id])
        if acknowledged:
            self._ask(entry_id)
        return True

    async def change(self) -> None:
        """Wait until an entry leaves."""
        self._changed = anyio.Event()
        await self._changed.wait()

    async def acknowledge(self, entry_id: str) -> None:
        """Finish an entry; returns when the server knows. Without :meth:`run` it is tried once.

        Raises:
            RedisError, OSError: the one try failed.
        """
        known = self._waiting.get(entry_id) or anyio.Event()
        self._ask(entry_id, known)
        if self._running:
            await known.wait()
        # Also where ``run`` ended while we waited.
        if entry_id in self._waiting:
            await self.flush()

    def acknowledge_soon(self, entry_id: str) -> None:
        """Finish an entry with the next group."""
        self.finish(entry_id, acknowledged=True)
        if entry_id not in self._waiting:
            self._waiting[entry_id] = None
        if self._asked is not None:
            self._asked.set()

    async def run(self) -> None:
        """Send acknowledgements until cancelled."""
        self._running = True
        try:
            while True:
                if not self._waiting:
                    self._asked = anyio.Event()
                    await self._asked.wait()
                    self._asked = None
                try:
                    await self.flush()
                except (RedisError, OSError) as error:
                    await anyio.sleep(self._attempts.failed(error))
                else:
                    self._attempts.answered()
        finally:
            self._running = False
            for known in self._waiting.values():
                if known is not None:
                    known.set()

    async def renew(self) -> None:
        """Extend the claims on all entries here. Raises redis-py's errors."""
        stream, group, name = self._member.stream, self._member.group, self._member.name
        lost: set[str] = set()
        async with self._renewing:
            ids = sorted(self._entries | self.held)
            for start in range(0, len(ids), _GROUP):
                some = ids[start : start + _GROUP]
                lost.update(await scripts.renew_claims(self._client, stream, group, name, some))
        # Some may have been finished meanwhile.
        still_here = lost & (self._entries | self.held)
        fresh = still_here - self._waiting.keys() - self._dying - self._claims_lost
        if fresh:
            self._claims_lost |= fresh
            self._on_event("claims_lost", {"stream": stream, "entries": " ".join(sorted(fresh))})

    def _ask(self, entry_id: str, known: anyio.Event | None = None) -> None:
        if known is not None or entry_id not in self._waiting:
            self._waiting[entry_id] = known
        if self._asked is not None:
            self._asked.set()

    async def flush(self) -> None:
        """Send what waits to be acknowledged, in groups; what isn't known to have arrived waits on.

        Raises:
            RedisError, OSError: the server wasn't reached, or refused.
        """
        stream, group, delete = self._member.stream, self._member.group, self._member.delete
        async with self._sending:
            while some := list(islice(self._waiting, _GROUP)):
                await scripts.ack(self._client, stream, group, some, delete=delete)
                self.acknowledged += len(some)
                for entry_id in some:
                    known = self._waiting.pop(entry_id)
                    if known is not None:
                        self.finish(entry_id, acknowledged=True)
                        known.set()
