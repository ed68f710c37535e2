"""URLs of servers: one line says where the server is and how it is reached.

    unix:///run/valkey.sock                                 one server, by a socket
    redis://user:password@host:6379/0                       one server; rediss:// with TLS
    redis+sentinel://user:password@h1:26379,h2:26379/name   the master of that name, by sentinels
    redis+cluster://user:password@h1:7000,h2:7001           a cluster, by any of its nodes

Not read by ``urllib`` alone: several hosts are no URL to it, and its own words about a bad one may
contain a piece of the password.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Topology = Literal["one", "sentinel", "cluster"]
Address = tuple[str, int]
"""Host and port."""

_SCHEMES: Final[dict[str, tuple[Topology, bool]]] = {
    "unix": ("one", False),
    "redis": ("one", False),
    "rediss": ("one", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_PORTS: Final[dict[Topology, int]] = {"one": 6379, "sentinel": 26379, "cluster": 6379}
# Others would change what oona promises (time limits, bytes as replies, retries).
_TLS_OPTIONS: Final = frozenset(
    {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"}
)
_OPTIONS: Final[dict[Topology, frozenset[str]]] = {
    "one": _TLS_OPTIONS | {"db"},
    "sentinel": _TLS_OPTIONS | {"sentinel_username", "sentinel_password"},
    "cluster": _TLS_OPTIONS,
}
_CERT_REQS: Final = frozenset({"none", "optional", "required"})
_YES_NO: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

_USER_PASSWORD: Final = re.compile(r"^([\w+.-]+://[^:/?#@]*):(.*)@", re.DOTALL)
_SECRET_OPTIONS: Final = re.compile(r"([?&])(?!(?:db|ssl_\w+|sentinel_username)=).*$", re.DOTALL)


class BadUrl(ValueError):
    """The URL can't name a server; one line, without a password."""


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """What a URL says.

    Attributes:
        topology: What is at the addresses: the server, its sentinels, or nodes of its cluster.
        path: Of the Unix socket; empty where the server is reached by an address.
        addresses: At least one, unless there is a path.
        tls: Whether it is spoken, to every address.
        username: Of the server's user; ``None``: the default one.
        password: Of that user.
        service: The master's name, where there are sentinels.
        db: Number of the database.
        sentinel_username: Of the user that the sentinels want.
        sentinel_password: Of that user.
        tls_options: redis-py's ``ssl_...`` arguments.
    """

    topology: Topology
    path: str = ""
    addresses: tuple[Address, ...] = ()
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    service: str = ""
    db: int = 0
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def local(self) -> bool:
        """Only this machine reaches the server by this URL (Unix socket or loopback)."""
        return all(is_loopback(host) for host, _ in self.addresses)


def redacted(url: str) -> str:
    """Return ``url`` with its passwords shown as ``***``, for messages to people; never fails."""
    # Not by parsing: a password that breaks the URL is the one that would be shown.
    found = _USER_PASSWORD.match(url)
    if found is None:
        return _SECRET_OPTIONS.sub(r"\1***", url)
    if "?" in found[2]:
        # Where the '@' is an option's, what follows it may be the rest of a password.
        return f"{found[1]}:***@***"
    rest = _SECRET_OPTIONS.sub(r"\1***", url[found.end() :])
    return f"{found[1]}:***@{rest}"


def is_local(url: str) -> bool:
    """Tell whether only this machine reaches the server by this URL (Unix socket or loopback).

    Of several hosts all have to be. Clients hold to it: one whose URL is local follows no sentinel
    and no cluster to another machine.

    Raises:
        BadUrl: the URL can't name a server.
    """
    return parse(url).local


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` is this machine and nobody else reaches it there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse(url: str) -> ServerUrl:
    """Read a URL.

    Raises:
        BadUrl: it can't name a server; one clear line, without a password.
    """
    shown = redacted(url)
    try:
        return _parse(url)
    except _Bad as bad:
        raise BadUrl(f"server URL {shown!r}: {bad}") from None
    except ValueError:
        detail = "can't be read; signs in a password must be percent-encoded"
        raise BadUrl(f"server URL {shown!r}: {detail}") from None


class _Bad(ValueError):
    """What is wrong, in words that hold nothing of the URL's secrets."""


def _parse(url: str) -> ServerUrl:
    if "#" in url:
        raise _Bad("a '#' must be written as %23")
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in _SCHEMES or "://" not in url:
        raise _Bad(
            "must begin with unix://, redis:// or rediss://, redis+sentinel:// or redis+cluster://"
        )
    topology, tls = _SCHEMES[scheme.lower()]
    before, _, query = rest.partition("?")
    place, slash, path = before.partition("/")
    userinfo, _, hosts = place.rpartition("@")
    username, colon, password = userinfo.partition(":")
    options = _options(query, topology)
    found: dict[str, Any] = {
        "topology": topology,
        "tls": tls,
        "username": unquote(username) or None,
        "password": unquote(password) if colon else None,
        "sentinel_username": options.pop("sentinel_username", None),
        "sentinel_password": options.pop("sentinel_password", None),
    }
    if scheme.lower() == "unix":
        if not slash or hosts:
            what = "has a host; " if hosts and slash else ""
            raise _Bad(f"{what}must be unix:///absolute/path")
        return ServerUrl(**found, path=f"/{unquote(path)}", db=int(options.pop("db", 0)))
    found["addresses"] = _addresses(hosts, topology)
    found["service"], found["db"] = _service_and_db(path, topology, options.pop("db", ""))
    return ServerUrl(**found, tls_options=options)


def _options(query: str, topology: Topology) -> dict[str, Any]:
    options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    allowed = _OPTIONS[topology]
    if unknown := sorted(options.keys() - allowed):
        # With a bare '?' or '&' in a password, a piece of that is what looks like an option.
        secret = "@" in query or "sentinel_password" in options
        name = "" if secret else f" {unknown[0]!r}"
        raise _Bad(f"unknown option{name}; allowed: {', '.join(sorted(allowed))}")
    if not options.get("db", "0").isdigit():
        raise _Bad("option db must be a database number")
    if "ssl_check_hostname" in options:
        word = options["ssl_check_hostname"].lower()
        if word not in _YES_NO:
            raise _Bad("option ssl_check_hostname must be true or false")
        options["ssl_check_hostname"] = _YES_NO[word]
    if options.get("ssl_cert_reqs", "required") not in _CERT_REQS:
        raise _Bad(f"option ssl_cert_reqs must be one of {', '.join(sorted(_CERT_REQS))}")
    return options


def _addresses(hosts: str, topology: Topology) -> tuple[Address, ...]:
    items = hosts.split(",")
    if topology == "one" and len(items) > 1:
        raise _Bad("several hosts are redis+sentinel:// or redis+cluster://")
    found = []
    for item in items:
        parts = urlsplit(f"//{item}")
        if topology != "one" and not parts.hostname:
            raise _Bad("must name hosts: host:port,host:port")
        found.append((unquote(parts.hostname or "localhost"), parts.port or _PORTS[topology]))
    return tuple(found)


def _service_and_db(path: str, topology: Topology, option: str) -> tuple[str, int]:
    service, number = "", path.strip("/")
    if topology == "sentinel":
        service, _, number = number.partition("/")
        if not service:
            raise _Bad("must name the master: redis+sentinel://host:26379/NAME")
    if number and not number.isdigit():
        raise _Bad("the path must be a database number")
    db = int(option or number or 0)
    if topology == "cluster" and db:
        raise _Bad("a cluster has database 0 alone")
    return unquote(service), db
