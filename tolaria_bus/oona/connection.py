"""Connections to the server: the one place where redis-py is configured.

Nothing is retried here. The caller sees every error and has its own back-off, which draws from a
generator of its own: redis-py's would draw from Python's global one, and a run that is to be
repeated bit for bit can't share that with a network's moods.
"""

import ipaddress
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError

from tolaria_bus.oona.closed_transport import lost_when_closed
from tolaria_bus.oona.packing import packed_by_hiredis

REPLY_TIMEOUT: Final = timedelta(seconds=5)
"""A reply that takes longer means a dead server; a blocking read has its block on top of it."""
CONNECT_TIMEOUT: Final = timedelta(seconds=5)
HEALTH_CHECK: Final = timedelta(seconds=15)
"""A connection idle for longer is asked for a PING before it is used again."""

_PASSWORD: Final = re.compile(r"^(\w+://[^:/?#@]*):.*@", re.DOTALL)
_SCHEMES: Final = ("unix", "redis", "rediss")
# Others would change what this module promises (time limits, bytes as replies, retries).
_OPTIONS: Final = frozenset(
    {"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"}
)


class BadUrl(ValueError):
    """The URL can't name a server; one line, without the password."""


class ServerUnreachable(ConnectionError):
    """No usable server at the URL; one line, without the password."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself."""

    name: str
    """``valkey`` or ``redis``."""
    version: str
    durable: bool
    """Every write is on disk before it is answered (``appendonly yes``, ``appendfsync always``)."""
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

    Args:
        url: ``unix:///path``, ``redis://host:port/db``, ``rediss://…`` (TLS), with
            ``user:password@`` where the server wants it.
        name: what the server's CLIENT LIST shows; no spaces.
        block: how long this client's blocking reads may wait in the server; its time limit for
            replies is that much longer. A reader shares its client with nobody.
        reply: How long any other reply may take; by default ``REPLY_TIMEOUT``.

    Raises:
        BadUrl: the URL can't name a server.
    """
    _split(url)
    limit = (reply or REPLY_TIMEOUT) + (block or timedelta())
    try:
        client = Redis.from_url(
            url,
            client_name=name,
            socket_timeout=limit.total_seconds(),
            socket_connect_timeout=CONNECT_TIMEOUT.total_seconds(),
            health_check_interval=int(HEALTH_CHECK.total_seconds()),
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except (ValueError, TypeError) as error:
        raise BadUrl(f"server URL {redacted(url)!r}: {error}") from None
    pool = client.connection_pool
    pool.connection_class = packed_by_hiredis(lost_when_closed(pool.connection_class))
    return client


def redacted(url: str) -> str:
    """Return ``url`` with its password shown as ``***``, for messages to people; never fails."""
    # Not by urlsplit: a password that breaks the URL is the one that would be shown.
    return _PASSWORD.sub(r"\1:***@", url)


def is_local(url: str) -> bool:
    """Tell whether only this machine reaches the server by this URL (Unix socket or loopback).

    Raises:
        BadUrl: the URL can't name a server.
    """
    parts = _split(url)
    if parts.scheme == "unix" or parts.hostname in (None, "localhost"):
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


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
            settings = await _settings(client)
        except (RedisError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ServerUnreachable(f"server {shown}: {reason}") from None
    return ServerInfo(
        name=str(info.get("server_name", "redis")),
        version=str(info.get("valkey_version", info.get("redis_version", ""))),
        durable=settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always",
        evicts=settings.get("maxmemory-policy", "noeviction") != "noeviction",
    )


async def _settings(client: Redis) -> dict[str, str]:
    """Return the settings that matter for durability; none where the user may not see them."""
    try:
        found: dict[Any, Any] = await client.config_get("append*", "maxmemory-policy")
    except NoPermissionError:
        return {}
    return {_text(key): _text(value) for key, value in found.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class ServerClock:
    """The server's time, as far as it was asked for it; between two answers this machine counts.

    Entry ids are made by the server's clock, so whoever judges one needs that and not the local
    clock, which may be minutes behind. An estimate that lags would refuse good entries (a machine
    that slept counts too little), one that is ahead only refuses a little less: so where this
    machine's wall clock is the later one, it is taken.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._offset: float | None = None

    async def sync(self, client: Redis) -> None:
        """Ask the server. Raises redis-py's errors."""
        asked = self._monotonic()
        seconds, micros = await client.time()
        # As if it had answered at once: never behind its clock.
        self._offset = seconds + micros / 1e6 - asked

    def now_ms(self) -> int | None:
        """Milliseconds since the epoch on the server's clock; ``None`` until first asked."""
        if self._offset is None:
            return None
        return int(max(self._monotonic() + self._offset, self._wall()) * 1000)

    def now(self) -> float | None:
        """Seconds since the epoch, whatever this machine's wall clock says: for measuring."""
        return None if self._offset is None else self._monotonic() + self._offset


def _split(url: str) -> SplitResult:
    """Return the URL's parts. Raises BadUrl with one clear line."""
    shown = redacted(url)
    if "#" in url:
        raise BadUrl(f"server URL {shown!r}: a '#' must be written as %23")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        # urllib's own words may contain a piece of the password.
        detail = "can't be read; signs in a password must be percent-encoded"
        raise BadUrl(f"server URL {shown!r}: {detail}") from None
    if parts.scheme not in _SCHEMES:
        raise BadUrl(f"server URL {shown!r}: must begin with unix://, redis:// or rediss://")
    if parts.scheme == "unix" and not parts.path.startswith("/"):
        raise BadUrl(f"server URL {shown!r}: must be unix:///absolute/path")
    if parts.scheme == "unix" and (host or port):
        raise BadUrl(f"server URL {shown!r}: has a host; must be unix:///absolute/path")
    if parts.scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdigit():
        raise BadUrl(f"server URL {shown!r}: the path must be a database number")
    if unknown := sorted(options.keys() - _OPTIONS):
        raise BadUrl(
            f"server URL {shown!r}: unknown option {unknown[0]!r}; "
            f"allowed: {', '.join(sorted(_OPTIONS))}"
        )
    return parts


__all__ = [
    "BadUrl",
    "ServerClock",
    "ServerInfo",
    "ServerUnreachable",
    "check",
    "connect",
    "is_local",
    "redacted",
]
