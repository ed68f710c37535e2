"""Entries that were handed over and aren't finished: their claims, and their acknowledgements.

Acknowledgements are sent in groups: all that came while the last group was on its way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tolaria_bus.oona import scripts
from tolaria_bus.oona.attempts import Attempts
from tolaria_bus.oona.events import OnEvent
from tolaria_bus.oona.opening import Opened
from tolaria_bus.oona.reading import Member

_GROUP: Final = 500
"""Entries acknowledged, or claims extended, in one call."""
_REMEMBERED: Final = 10_000
"""Finished entries that are known if the server hands them out again."""


class _Owner(Protocol):
    async def acknowledge(self, received: Received) -> None: ...
    def acknowledge_soon(self, received: Received) -> None: ...
    async def bury(self, received: Received, reason: str, detail: str) -> None: ...
    def forget(self, received: Received) -> None: ...


@dataclass(slots=True, eq=False)
class Received:
    """An entry as its handler gets it. It stays pending until one of the methods is called.

    Attributes:
        stream: Key of its stream.
        group: The group that reads.
        entry_id: Its id.
        opened: What it carries.
        fields: What it held.
        deliveries: How often it was delivered, this time included.
        redelivered: It was delivered before: to us before a restart, or to another consumer.
        failures: How often the handler has failed on it.
    """

    stream: str
    group: str
    entry_id: str
    opened: Opened
    fields: Mapping[bytes, bytes] = field(repr=False)
    deliveries: int
    redelivered: bool
    _owner: _Owner = field(repr=False)
    failures: int = 0

    async def ack(self) -> None:
        """Finish it: its effect is durable. Returns when the server knows.

        Waits through an outage while the consumer runs; afterwards it is tried once.

        Raises:
            RedisError, OSError: the consumer isn't running, and the server can't be told.
        """
        await self._owner.acknowledge(self)

    def ack_soon(self) -> None:
        """Finish it with the next group, without waiting: for effects that may happen twice."""
        self._owner.acknowledge_soon(self)

    async def dead_letter(self, reason: str, detail: str) -> None:
        """Finish it as one that can't be used; through an outage as soon as that ends.

        Args:
            reason: One word, for programs.
            detail: One sentence, for people.
        """
        await self._owner.bury(self, reason, detail)

    def forget(self) -> None:
        """Leave the finishing to somebody else, who is certain to do it (``settle.lua``)."""
        self._owner.forget(self)


class InFlight:
    """The entries in the hands of handlers, by id.

    Events: those of :class:`Attempts`; ``claims_lost`` (stream, entries): another consumer has
    taken entries that are being worked on here.

    Args:
        client: Not the one that blocks.
        member: Which consumer has them.
        on_event: Told of troubles.

    Attributes:
        acknowledged: How many acknowledgements the server has.
    """

    def __init__(self, client: Redis, member: Member, on_event: OnEvent) -> None:
        self.acknowledged = 0
        self._client = client
        self._member = member
        self._on_event = on_event
        self._attempts = Attempts(f"{member.stream} acknowledgements", on_event)
        self._entries: set[str] = set()
        self._claims_lost: set[str] = set()
        self._finished: OrderedDict[str, bool] = OrderedDict()
        self._waiting: dict[str, anyio.Event] = {}
        self._running = False
        self._sending = anyio.Lock()
        self._asked = anyio.Event()
        self._changed = anyio.Event()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def reconnects(self) -> int:
        """How often the connection of the acknowledgements was lost and came back."""
        return self._attempts.reconnects

    def ids(self) -> frozenset[str]:
        """Of all entries in flight."""
        return frozenset(self._entries)

    def kept(self) -> frozenset[str]:
        """Of entries that nobody else may have: those in flight, and those that others finish."""
        forgotten = {entry_id for entry_id, known in self._finished.items() if not known}
        return self.ids() | forgotten

    def add(self, entry_id: str) -> None:
        """An entry is about to be handed over."""
        self._entries.add(entry_id)

    def remove(self, entry_id: str) -> None:
        """An entry isn't in a handler's hands any more, finished or not."""
        self._entries.discard(entry_id)
        self._claims_lost.discard(entry_id)
        self._changed.set()

    def finish(self, entry_id: str, *, acknowledged: bool) -> None:
        """An entry is finished, or will be by somebody else."""
        self.remove(entry_id)
        self._finished[entry_id] = acknowledged
        self._finished.move_to_end(entry_id)
        if len(self._finished) > _REMEMBERED:
            self._finished.popitem(last=False)

    def handed_out_before(self, entry_id: str) -> bool:
        """Is an entry that the server delivers in our hands, or finished?

        After a lost reply, and in a group made anew, entries come again. One that we have
        acknowledged is acknowledged once more.
        """
        if entry_id in self._entries:
            return True
        acknowledged = self._finished.get(entry_id)
        if acknowledged:
            self._ask(entry_id)
        return acknowledged is not None

    async def change(self) -> None:
        """Wait until an entry leaves."""
        self._changed = anyio.Event()
        await self._changed.wait()

    async def acknowledge(self, entry_id: str) -> None:
        """Finish an entry; returns when the server knows. Without :meth:`run` it is tried once.

        Raises:
            RedisError, OSError: the one try failed.
        """
        known = self._ask(entry_id)
        if self._running:
            await known.wait()
        # Also where ``run`` ended while we waited.
        if entry_id in self._waiting:
            await self._flush()

    def acknowledge_soon(self, entry_id: str) -> None:
        """Finish an entry with the next group."""
        self.finish(entry_id, acknowledged=True)
        self._ask(entry_id)

    async def run(self) -> None:
        """Send acknowledgements until cancelled."""
        self._running = True
        try:
            while True:
                self._asked = anyio.Event()
                if not self._waiting:
                    await self._asked.wait()
                try:
                    await self._flush()
                except (RedisError, OSError) as error:
                    await anyio.sleep(self._attempts.failed(error))
                else:
                    self._attempts.answered()
        finally:
            self._running = False
            for known in self._waiting.values():
                known.set()

    async def renew(self) -> None:
        """Extend the claims on all entries in flight. Raises redis-py's errors."""
        stream, group, name = self._member.stream, self._member.group, self._member.name
        ids = sorted(self._entries)
        lost: set[str] = set()
        for start in range(0, len(ids), _GROUP):
            some = ids[start : start + _GROUP]
            lost.update(await scripts.renew_claims(self._client, stream, group, name, some))
        # Some may have been finished meanwhile.
        fresh = (lost & self._entries) - self._waiting.keys() - self._claims_lost
        if fresh:
            self._claims_lost |= fresh
            self._on_event("claims_lost", {"stream": stream, "entries": " ".join(sorted(fresh))})

    def _ask(self, entry_id: str) -> anyio.Event:
        self._asked.set()
        return self._waiting.setdefault(entry_id, anyio.Event())

    async def _flush(self) -> None:
        """Send what waits, in groups. What isn't known to have arrived waits on."""
        stream, group, delete = self._member.stream, self._member.group, self._member.delete
        async with self._sending:
            while some := list(self._waiting)[:_GROUP]:
                await scripts.ack(self._client, stream, group, some, delete=delete)
                self.acknowledged += len(some)
                for entry_id in some:
                    self.finish(entry_id, acknowledged=True)
                    self._waiting.pop(entry_id).set()
