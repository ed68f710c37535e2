"""The master that sentinels name, as a client like any other.

They are asked for it at each new connection, all at once; of their answers the one of the latest
failover counts, so that a sentinel that was cut off can't lead back to a master of old. A master
that was demoted answers ``READONLY``; the connection is dropped then, and the next attempt asks
again. In between, errors are the caller's, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from tolaria_bus.oona.events import reason_of
from tolaria_bus.oona.url import Address

ANSWER: Final = timedelta(seconds=1)
"""How long a sentinel may take. They answer from memory; one that hangs must not hold up all."""


class Sentinels:
    """The sentinels of one master: what a ``SentinelConnectionPool`` asks for its address.

    Args:
        clients: One for each of them.
        admits: Whether connections may go to a host; see ``url.is_local``.
    """

    def __init__(self, clients: Sequence[Redis], admits: Callable[[str], bool]) -> None:
        self._clients = clients
        self._admits = admits

    async def discover_master(self, service: str) -> Address:
        """Return where the master is, as most of the sentinels that answer have it.

        Raises:
            RedisError: none of them knows the master, or they can't be asked.
        """
        answers: list[tuple[int, Address]] = []
        errors: list[Exception] = []

        async def ask(client: Redis) -> None:
            try:
                answers.append(await _master(client, service))
            except (RedisError, OSError) as error:
                errors.append(error)
            if len(answers) > len(self._clients) // 2:
                # Those that hang needn't be waited for.
                asking.cancel_scope.cancel()

        async with anyio.create_task_group() as asking:
            for client in self._clients:
                asking.start_soon(ask, client)
        if not answers:
            raise _none(service, errors)
        _, (host, port) = max(answers)
        if not self._admits(host):
            raise RedisConnectionError(
                f"the sentinels of {service!r} name {host}, another machine: "
                "name them by addresses that other machines reach, too"
            )
        return host, port

    async def aclose(self) -> None:
        """Close the connections to the sentinels."""
        for client in self._clients:
            await client.aclose()


class MasterClient(Redis):
    """A client of the master; a ``Redis`` in all but where its connections go."""

    _sentinels: Sentinels

    @classmethod
    def of(cls, service: str, sentinels: Sentinels, **connection: Any) -> MasterClient:
        """Return a client.

        Args:
            service: The master's name.
            sentinels: Closed with it.
            connection: redis-py's arguments for connections.
        """
        pool: Any = SentinelConnectionPool(service, sentinels, **connection)  # type: ignore[no-untyped-call]
        client = cls.from_pool(pool)
        assert isinstance(client, cls)
        client._sentinels = sentinels
        return client

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections."""
        await super().aclose(close_connection_pool)
        await self._sentinels.aclose()


async def _master(client: Redis, service: str) -> tuple[int, Address]:
    """The number of the failover that made it the master, and its address."""
    command = ("SENTINEL", "MASTER", service)
    reply: Any = await client.execute_command(*command)  # type: ignore[no-untyped-call]
    pairs = iter(reply)
    state = {name.decode(): value.decode() for name, value in zip(pairs, pairs, strict=True)}
    return int(state["config-epoch"]), (state["ip"], int(state["port"]))


def _none(service: str, errors: Sequence[Exception]) -> RedisError:
    # What waiting won't mend is the better reason.
    refused = [error for error in errors if isinstance(error, AuthenticationError)]
    why = reason_of([*refused, *errors][0])
    return RedisConnectionError(f"no sentinel knows where {service!r} is: {why}")
