"""An entry as its handler gets it, with the ways to finish it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tolaria_bus.oona.in_flight import InFlight
from tolaria_bus.oona.opening import Opened
from tolaria_bus.oona.reading import Delivered, Member


class _Owner(Protocol):
    in_flight: InFlight

    async def acknowledge(self, received: Received) -> None: ...
    async def bury(self, received: Received, reason: str, detail: str) -> None: ...
    def forget(self, received: Received) -> None: ...


class Received:
    """An entry as its handler gets it. It stays pending until one of the methods is called.

    Attributes:
        opened: What it carries.
        failures: How often the handler has failed on it.
    """

    __slots__ = ("_entry", "_member", "_owner", "failures", "opened")

    def __init__(self, member: Member, entry: Delivered, opened: Opened, owner: _Owner) -> None:
        self.opened = opened
        self.failures = 0
        self._member = member
        self._entry = entry
        self._owner = owner

    @property
    def stream(self) -> str:
        """Key of its stream."""
        return self._member.stream

    @property
    def group(self) -> str:
        """The group that reads."""
        return self._member.group

    @property
    def entry_id(self) -> str:
        """Its id."""
        return self._entry.entry_id

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """What it held."""
        return self._entry.fields

    @property
    def deliveries(self) -> int:
        """How often it was delivered, this time included."""
        return self._entry.deliveries

    @property
    def redelivered(self) -> bool:
        """It was delivered before: to us before a restart, or to another consumer."""
        return self._entry.redelivered

    def __repr__(self) -> str:
        return f"<Received {self.entry_id} of {self.stream}, delivery {self.deliveries}>"

    async def ack(self) -> None:
        """Finish it: its effect is durable. Returns when the server knows.

        Waits through an outage while the consumer runs; afterwards it is tried once.

        Raises:
            RedisError, OSError: the consumer isn't running, and the server can't be told.
        """
        await self._owner.acknowledge(self)

    def ack_soon(self) -> None:
        """Finish it with the next group, without waiting: for effects that may happen twice."""
        self._owner.in_flight.acknowledge_soon(self._entry.entry_id)

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
