"""The nodes of a cluster: who has which slots, as far as is known, and a client of each.

The map is asked for when it is first needed, and anew after an error or a redirection: of the
nodes known, one after the other, beginning with the one that a redirection named; one that failed
comes last. Nothing here is random.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from tolaria_bus.oona.cluster_keys import slot_of
from tolaria_bus.oona.events import reason_of
from tolaria_bus.oona.url import Address

MAP_ANSWER: Final = timedelta(seconds=2)
"""How long a node may take to say who has which slots, before another is asked."""


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Who has which slots.

    Attributes:
        starts: First slot of each range, ascending.
        ranges: Last slot of each range, and its primary.
    """

    starts: list[int]
    ranges: list[tuple[int, Address]]

    @property
    def primaries(self) -> list[Address]:
        """Every primary once, by its first slot."""
        return list(dict.fromkeys(address for _, address in self.ranges))

    def node_of(self, slot: int) -> Address | None:
        """The primary that has a slot."""
        place = bisect_right(self.starts, slot) - 1
        if place < 0 or self.ranges[place][0] < slot:
            return None
        return self.ranges[place][1]


class ClusterNodes:
    """What is known of a cluster.

    Args:
        seeds: Addresses of some of its nodes.
        make: Makes the client of a node.
        admits: Whether connections may go to a host; see ``url.is_local``.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        make: Callable[[Address], Redis],
        admits: Callable[[str], bool],
    ) -> None:
        self._seeds = tuple(seeds)
        self._make = make
        self._admits = admits
        self._clients: dict[Address, Redis] = {}
        self._known = list(seeds)
        self._map: SlotMap | None = None
        self._asking = anyio.Lock()

    async def primaries(self) -> list[Redis]:
        """A client of each primary. Raises redis-py's errors."""
        return [self.client(address) for address in (await self._slots()).primaries]

    async def address_of(self, command: Sequence[Any]) -> Address:
        """Where a command goes; without a key, to the first node. Raises redis-py's errors."""
        slot = slot_of(command)
        slots = await self._slots()
        address = slots.primaries[0] if slot is None else slots.node_of(slot)
        if address is None:
            self._map = None
            raise RedisConnectionError(f"no node of the cluster has slot {slot}")
        return address

    def client(self, address: Address) -> Redis:
        """The client of a node. Raises RedisError if it isn't where the URL may lead."""
        if not self._admits(address[0]):
            raise RedisConnectionError(
                f"the cluster has a node on {address[0]}, another machine: "
                "name its nodes by addresses that other machines reach, too"
            )
        if address not in self._clients:
            self._clients[address] = self._make(address)
        return self._clients[address]

    def redirected(self, redirection: AskError, by: Address) -> Address:
        """Where a redirection leads; after one for good the map is old."""
        address = (redirection.host or by[0], redirection.port)
        if isinstance(redirection, MovedError):
            self._map = None
            self._known = [address, *(known for known in self._known if known != address)]
        return address

    def failed(self, address: Address, error: Exception) -> None:
        """A command failed there: if its node may be gone, others may have its slots by now."""
        if isinstance(error, ResponseError) and not isinstance(error, ClusterDownError):
            return
        self._map = None
        self._known.sort(key=lambda known: known == address)

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def _slots(self) -> SlotMap:
        if self._map is not None:
            return self._map
        async with self._asking:
            # Whoever waited here finds it asked for.
            return self._map or await self._renewed()

    async def _renewed(self) -> SlotMap:
        slots = self._map = await self._ask()
        self._known = slots.primaries
        for address in self._clients.keys() - set(slots.primaries):
            await self._clients.pop(address).aclose()
        return slots

    async def _ask(self) -> SlotMap:
        errors: list[Exception] = []
        asked = list(dict.fromkeys([*self._known, *self._seeds]))
        for address in asked:
            try:
                with anyio.fail_after(MAP_ANSWER.total_seconds()):
                    reply: Any = await self.client(address).execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                errors.append(error)
                continue
            if reply:
                return _read(reply, address[0])
            errors.append(ClusterDownError("the node has no slots and knows of none"))
        # What waiting won't mend is the better reason.
        refusals = [error for error in errors if isinstance(error, ResponseError)]
        if refusals:
            raise refusals[0]
        names = ", ".join(f"{host}:{port}" for host, port in asked)
        raise RedisConnectionError(f"no node answers ({names}): {reason_of(errors[-1])}")


def _read(reply: Sequence[Sequence[Any]], asked: str) -> SlotMap:
    """Read what ``CLUSTER SLOTS`` answers; a node that doesn't know its host is where we asked."""
    ranges = sorted((first, last, (node[0] or b"", node[1])) for first, last, node, *_ in reply)
    return SlotMap(
        starts=[first for first, _, _ in ranges],
        ranges=[(last, (host.decode() or asked, port)) for _, last, (host, port) in ranges],
    )
