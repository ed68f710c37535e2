"""Commands for many nodes of a cluster: to each in one round trip, to all at the same time.

What a node that can't be reached should have answered comes back as the error, beside the answers
of the others: what those have is known, and only the rest is to be sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import AskError, ClusterDownError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from tolaria_bus.oona.cluster_keys import is_for_all
from tolaria_bus.oona.cluster_nodes import ClusterNodes
from tolaria_bus.oona.url import Address

_WAITS: Final = frozenset({"WAIT", "WAITAOF"})


class ClusterPipeline(Pipeline):
    """A pipeline over all nodes; no transaction.

    ``WAIT`` and ``WAITAOF`` are asked of each node that has commands here, behind those; the answer
    is that of the node with the fewest copies.

    Args:
        cluster: Follows redirections.
        nodes: Of that cluster.
    """

    def __init__(self, cluster: Redis, nodes: ClusterNodes) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, False, None)
        self._cluster = cluster
        self._nodes = nodes

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue a command. Raises ValueError for one that isn't for one node."""
        if is_for_all(args):
            raise ValueError(f"{args[0]} is for all nodes: not in a pipeline")
        return super().execute_command(*args, **options)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send all; replies in the order of the commands, errors among them.

        Raises:
            RedisError, OSError: no node could be reached; or, with ``raise_on_error``, the first
                error of a command.
        """
        stack, self.command_stack = self.command_stack, []
        waits = [place for place, (command, _) in enumerate(stack) if command[0] in _WAITS]
        places: dict[Address, list[int]] = {}
        for place, (command, _) in enumerate(stack):
            if place not in waits:
                places.setdefault(await self._nodes.address_of(command), []).append(place)
        answers: dict[Address, dict[int, Any]] = {}
        unreached: dict[Address, Exception] = {}

        async def send(address: Address, mine: Sequence[int]) -> None:
            commands = [stack[place] for place in mine]
            try:
                found = await _run(self._nodes.client(address), commands)
            except (RedisError, OSError) as error:
                self._nodes.failed(address, error)
                unreached[address] = error
                found = [error] * len(mine)
            answers[address] = dict(zip(mine, found, strict=True))

        async with anyio.create_task_group() as tasks:
            for address, mine in places.items():
                tasks.start_soon(send, address, sorted([*mine, *waits]))
        if unreached and len(unreached) == len(places):
            raise next(iter(unreached.values()))
        replies: list[Any] = [None] * len(stack)
        for address, mine in places.items():
            for place in mine:
                reply = answers[address][place]
                if isinstance(reply, AskError | ClusterDownError):
                    reply = await self._after(reply, address, stack[place], waited=bool(waits))
                replies[place] = reply
        for place in waits:
            replies[place] = _fewest(
                [answers[address][place] for address in places if address not in unreached]
            )
        if raise_on_error:
            raise_first(replies)
        return replies

    async def _after(
        self, error: AskError | ClusterDownError, by: Address, queued: Any, *, waited: bool
    ) -> Any:
        """Follow a redirection; the reply, or the error that there is instead."""
        if isinstance(error, ClusterDownError):
            self._nodes.failed(by, error)
            return error
        self._nodes.redirected(error, by)
        if waited:
            # There it would be waited for by nobody.
            return RedisConnectionError(f"its slot is elsewhere now: {error}")
        command, options = queued
        try:
            return await self._cluster.execute_command(*command, **options)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as again:
            return again


def raise_first(replies: Sequence[Any]) -> None:
    """Raise the first of the replies that is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


async def _run(node: Redis, commands: Sequence[Any]) -> list[Any]:
    pipe = node.pipeline(transaction=False)
    for command, options in commands:
        pipe.execute_command(*command, **options)
    return await pipe.execute(raise_on_error=False)


def _fewest(answers: Sequence[Any]) -> Any:
    """The least of what nodes say of their copies: numbers, or pairs of them; or an error."""
    for answer in answers:
        if isinstance(answer, Exception):
            return answer
    if isinstance(answers[0], list):
        return [min(numbers) for numbers in zip(*answers, strict=True)]
    return min(answers)
