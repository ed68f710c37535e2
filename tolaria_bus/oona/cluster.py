"""A cluster, as a client like any other: each command goes to the node that has its key's slot.

Beside redis-py's own cluster client, which draws nodes from Python's global random generator,
hides errors behind retries with a jitter from the same, raises some that are no ``RedisError``,
and in a pipeline forgets what the other nodes answered when one is gone. Here nothing is random
and nothing is retried: a redirection is followed, everything else is the caller's to see, and the
next command finds the nodes as they are then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import AskError, MovedError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from tolaria_bus.oona.cluster_keys import is_for_all, slot_of_key, streams_of
from tolaria_bus.oona.cluster_nodes import ClusterNodes
from tolaria_bus.oona.cluster_pipeline import ClusterPipeline, raise_first
from tolaria_bus.oona.url import Address

_REDIRECTIONS: Final = 5


class ClusterClient(Redis):
    """A client of all nodes of a cluster; a ``Redis`` in all but where its commands go.

    Commands without a key (``PING``, ``TIME``, ``INFO``) go to one node; those that concern servers
    as a whole (``FLUSHALL``, ``CONFIG SET``, ``KEYS``) to all.

    Args:
        seeds: Addresses of some of its nodes.
        make: Makes the client of a node.
        admits: Whether connections may go to a host; see ``url.is_local``.

    Attributes:
        nodes: The nodes.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        make: Callable[[Address], Redis],
        admits: Callable[[str], bool],
    ) -> None:
        # For what redis-py makes of a pool: its codec, and names for people.
        self._unused = make(seeds[0])
        super().__init__(connection_pool=self._unused.connection_pool)

        def make_alike(address: Address) -> Redis:
            node = make(address)
            # Those that are set here later, too.
            node.response_callbacks = self.response_callbacks
            return node

        self.nodes = ClusterNodes(seeds, make_alike, admits)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to the node that has its key. Raises redis-py's errors."""
        if len(parts := _by_slot(args)) > 1:
            return await self._read_from_many(parts, options)
        if is_for_all(args):
            return await self._tell_all(args, options)
        address = await self.nodes.address_of(args)
        asking = False
        for _ in range(_REDIRECTIONS):
            try:
                return await _send(self.nodes.client(address), asking, args, options)
            except AskError as redirection:
                address = self.nodes.redirected(redirection, address)
                asking = not isinstance(redirection, MovedError)
            except (RedisError, OSError) as error:
                self.nodes.failed(address, error)
                raise
        raise RedisConnectionError(
            f"redirected {_REDIRECTIONS} times: the cluster is being changed"
        )

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline over all nodes; it can't be a transaction.

        Raises:
            ValueError: a transaction is asked for.
        """
        if transaction:
            raise ValueError("no transaction goes over nodes: pipeline(transaction=False)")
        return ClusterPipeline(self, self.nodes)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections."""
        await super().aclose(close_connection_pool)
        await self._unused.aclose()
        await self.nodes.aclose()

    async def _tell_all(self, command: Sequence[Any], options: dict[str, Any]) -> Any:
        """Lists as one, of other answers the first."""
        nodes = await self.nodes.primaries()
        answers = [await _send(node, False, command, options) for node in nodes]
        if isinstance(answers[0], list):
            return [item for answer in answers for item in answer]
        return answers[0]

    async def _read_from_many(self, parts: Sequence[Sequence[Any]], options: dict[str, Any]) -> Any:
        """Read streams in several slots: all that there is, or, waiting, what comes first.

        A read that is broken off has taken nothing away; it costs its node a new connection.
        """
        found: list[Any] = []
        errors: list[Exception] = []

        async def read(part: Sequence[Any]) -> None:
            try:
                found.extend(await self.execute_command(*part, **options) or [])
            except (RedisError, OSError) as error:
                errors.append(error)
            if errors or (found and not {"BLOCK", b"BLOCK"}.isdisjoint(part)):
                reading.cancel_scope.cancel()

        async with anyio.create_task_group() as reading:
            for part in parts:
                reading.start_soon(read, part)
        if errors:
            raise errors[0]
        return found


def _by_slot(command: Sequence[Any]) -> list[Sequence[Any]]:
    """A command that reads streams, once for each slot; any other as it is."""
    streams = streams_of(command)
    if streams is None or command[0] != "XREAD":
        # Not XREADGROUP: what that reads and nobody gets is pending.
        return [command]
    head, names = command[:streams], command[streams:]
    half = len(names) // 2
    parts: dict[int, tuple[list[Any], list[Any]]] = {}
    for name, after in zip(names[:half], names[half:], strict=True):
        keys, ids = parts.setdefault(slot_of_key(name), ([], []))
        keys.append(name)
        ids.append(after)
    return [(*head, *keys, *ids) for keys, ids in parts.values()]


async def _send(node: Redis, asking: bool, command: Sequence[Any], options: dict[str, Any]) -> Any:
    if not asking:
        return await node.execute_command(*command, **options)  # type: ignore[no-untyped-call]
    # The leave to use a slot that is on its way holds for the next command of a connection.
    pipe = node.pipeline(transaction=False)
    pipe.execute_command("ASKING")
    pipe.execute_command(*command, **options)
    _, reply = await pipe.execute(raise_on_error=False)
    raise_first([reply])
    return reply
