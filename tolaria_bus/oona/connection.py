"""Connections to the server: the one place where redis-py is configured.

Nothing is retried here. The caller sees every error and has its own back-off, which draws from a
generator of its own: redis-py's would draw from Python's global one, and a run that is to be
repeated bit for bit can't share that with a network's moods.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError

from tolaria_bus.oona.closed_transport import lost_when_closed
from tolaria_bus.oona.cluster import ClusterClient
from tolaria_bus.oona.packing import packed_by_hiredis
from tolaria_bus.oona.sentinels import ANSWER, MasterClient, Sentinels
from tolaria_bus.oona.url import Address, BadUrl, ServerUrl, is_local, is_loopback, parse, redacted

REPLY_TIMEOUT: Final = timedelta(seconds=5)
"""A reply that takes longer means a dead server; a blocking read has its block on top of it."""
CONNECT_TIMEOUT: Final = timedelta(seconds=5)
HEALTH_CHECK: Final = timedelta(seconds=15)
"""A connection idle for longer is asked for a PING before it is used again."""

_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class ServerUnreachable(ConnectionError):
    """No usable server at the URL; one line, without the password."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself."""

    name: str
    """``valkey`` or ``redis``."""
    version: str
    durable: bool
    """Every write is on disk before it is answered (``appendonly yes``, ``appendfsync always``);
    in a cluster, on every node."""
    evicts: bool
    """Short of memory it may drop keys, streams among them."""


def connect(
    url: str,
    *,
    name: str,
    block: timedelta | None = None,
    reply: timedelta | None = None,
) -> Redis:
    """Return a client; no connection is made until its first command.

    Whatever the topology, it is a ``Redis``: commands raise redis-py's errors or ``OSError``, and
    after one the next command looks for the server anew.

    Args:
        url: See ``url.py`` for its forms.
        name: what the server's CLIENT LIST shows; no spaces.
        block: how long this client's blocking reads may wait in the server; its time limit for
            replies is that much longer. A reader shares its client with nobody.
        reply: How long any other reply may take; by default ``REPLY_TIMEOUT``.

    Raises:
        BadUrl: the URL can't name a server.
    """
    server = parse(url)
    for option in _FILES:
        path = server.tls_options.get(option)
        if path is not None and not Path(path).is_file():
            raise BadUrl(f"server URL {redacted(url)!r}: {option} {path!r}: no such file")
    limit = (reply or REPLY_TIMEOUT) + (block or timedelta())
    connection: dict[str, Any] = {
        "username": server.username,
        "password": server.password,
        "db": server.db,
        "client_name": name,
        "socket_timeout": limit.total_seconds(),
        "health_check_interval": int(HEALTH_CHECK.total_seconds()),
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if server.path:
        return _fitted(Redis(unix_socket_path=server.path, **connection))
    connection["socket_connect_timeout"] = CONNECT_TIMEOUT.total_seconds()
    if server.tls:
        connection |= {"ssl": True, **server.tls_options}
    # A local URL is believed to be that; see ``is_local``.
    admits = is_loopback if server.local else _anywhere
    if server.topology == "cluster":
        return ClusterClient(server.addresses, partial(_to, connection), admits)
    if server.topology == "sentinel":
        sentinels = [
            _to(_for_sentinel(server, connection), address) for address in server.addresses
        ]
        master = MasterClient.of(server.service, Sentinels(sentinels, admits), **connection)
        return _fitted(master)
    return _to(connection, server.addresses[0])


def _to(connection: dict[str, Any], address: Address) -> Redis:
    host, port = address
    return _fitted(Redis(host=host, port=port, **connection))


def _fitted(client: Redis) -> Redis:
    """Every connection of every topology passes here."""
    pool = client.connection_pool
    pool.connection_class = packed_by_hiredis(lost_when_closed(pool.connection_class))
    return client


def _for_sentinel(server: ServerUrl, connection: dict[str, Any]) -> dict[str, Any]:
    """What of the master's connection holds for those to its sentinels, and what doesn't."""
    return {
        **connection,
        "username": server.sentinel_username,
        "password": server.sentinel_password,
        "db": 0,
        "socket_timeout": ANSWER.total_seconds(),
        "socket_connect_timeout": ANSWER.total_seconds(),
    }


def _anywhere(host: str) -> bool:
    del host
    return True


async def servers(client: Redis) -> list[Redis]:
    """Clients of all servers behind a client that take writes: itself, or a cluster's nodes.

    They are closed with it. Raises redis-py's errors.
    """
    return await client.nodes.primaries() if isinstance(client, ClusterClient) else [client]


async def check(url: str) -> ServerInfo:
    """Connect, authenticate and ask the server what it is.

    Raises:
        BadUrl: the URL can't name a server.
        ServerUnreachable: it doesn't answer, refuses the password, or is no Redis.
    """
    shown = redacted(url)
    async with connect(url, name="tolaria-check") as client:
        try:
            info = await client.info("server")
            settings = [await _settings(server) for server in await servers(client)]
        except (RedisError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ServerUnreachable(f"server {shown}: {reason}") from None
    return ServerInfo(
        name=str(info.get("server_name", "redis")),
        version=str(info.get("valkey_version", info.get("redis_version", ""))),
        durable=all(map(_durable, settings)),
        evicts=any(map(_evicts, settings)),
    )


async def _settings(client: Redis) -> dict[str, str]:
    """Return the settings that matter for durability; none where the user may not see them."""
    try:
        found: dict[Any, Any] = await client.config_get("append*", "maxmemory-policy")
    except NoPermissionError:
        return {}
    return {_text(key): _text(value) for key, value in found.items()}


def _durable(settings: Mapping[str, str]) -> bool:
    return settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always"


def _evicts(settings: Mapping[str, str]) -> bool:
    return settings.get("maxmemory-policy", "noeviction") != "noeviction"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class ServerClock:
    """The server's time, as far as it was asked for it; between two answers this machine counts.

    Entry ids are made by the server's clock, so whoever judges one needs that and not the local
    clock, which may be minutes behind. An estimate that lags would refuse good entries (a machine
    that slept counts too little), one that is ahead only refuses a little less: so where this
    machine's wall clock is the later one, it is taken; and of a cluster's clocks, the latest.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._offset: float | None = None
        self._least: float | None = None

    async def sync(self, client: Redis) -> None:
        """Ask the server. Raises redis-py's errors."""
        offsets, least = [], []
        for server in await servers(client):
            asked = self._monotonic()
            seconds, micros = await server.time()
            told = seconds + micros / 1e6
            # As if it had answered at once: never behind its clock.
            offsets.append(told - asked)
            # As if it had answered at the last moment: never ahead of it.
            least.append(told - self._monotonic())
        self._offset, self._least = max(offsets), min(least)

    def now_ms(self) -> int | None:
        """Milliseconds since the epoch on the server's clock; ``None`` until first asked."""
        if self._offset is None:
            return None
        return int(max(self._monotonic() + self._offset, self._wall()) * 1000)

    def past_ms(self) -> int | None:
        """Like :meth:`now_ms`, but never ahead of the server: what comes later has a later id."""
        return None if self._least is None else int((self._monotonic() + self._least) * 1000)

    def now(self) -> float | None:
        """Seconds since the epoch, whatever this machine's wall clock says: for measuring."""
        return None if self._offset is None else self._monotonic() + self._offset


__all__ = [
    "BadUrl",
    "ServerClock",
    "ServerInfo",
    "ServerUnreachable",
    "check",
    "connect",
    "is_local",
    "redacted",
    "servers",
]
