"""Checks of a server: is it there, how fast, does it keep what it is told, whom does it believe?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from tolaria_bus.cli.finding import Finding, bad, good, note, worst
from tolaria_bus.cli.follow import reach
from tolaria_bus.cli.who import live_runs
from tolaria_bus.configured import key_ring
from tolaria_bus.oona.connection import BadUrl, ServerUnreachable, is_local, redacted, servers
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import FRESH_AHEAD_MS, FRESH_BACK_MS
from tolaria_bus.settings import SettingError, Settings

_PINGS: Final = 9
_SLOW_MS: Final = 10.0
_SKEW_NOTE_MS: Final = 1000.0
_NO_EVICTION: Final = "noeviction"


async def server(url: str, settings: Settings) -> list[Finding]:
    """Everything about the server at ``url``; never raises for what a server may be like."""
    try:
        async with reach(url, name="tolaria-doctor") as client:
            return [
                await _answer(client, url),
                *await _durability(client, url),
                await _clock(client, signed=settings.signing_keys is not None),
                await _runs(client, Streams(settings.prefix)),
            ]
    except (BadUrl, ServerUnreachable, RedisError, OSError) as error:
        reason = " ".join(str(error).split()).removeprefix("server ")
        return [bad("server", reason, "start it, or correct --redis / TOLARIA_REDIS_URL")]


def trust(settings: Settings, url: str | None) -> Finding:
    """Are commands signed, and if not, who could send some?

    Args:
        settings: Keys, and whether unsigned commands are allowed from afar.
        url: The server; ``None`` for an embedded one, which only this machine reaches.
    """
    try:
        ring = key_ring(settings)
        local = url is None or is_local(url)
    except (SettingError, BadUrl) as error:
        return bad("signing", str(error), "id:base64secret, as printed by: openssl rand -base64 32")
    if ring.enabled:
        return good("signing", f"on, with key {ring.signing_key}")
    mend = "TOLARIA_SIGNING_KEYS=k1:$(openssl rand -base64 32)"
    if local:
        return note("signing", "off: whoever reaches the server on this machine can steer", mend)
    if settings.allow_unsigned:
        return note("signing", "off: whoever reaches the server can steer", mend)
    return bad(
        "signing",
        "off, and the server isn't on this machine: a worker won't start",
        f"{mend}, or TOLARIA_ALLOW_UNSIGNED=1",
    )


async def _answer(client: Redis, url: str) -> Finding:
    info: dict[str, Any] = {}
    try:
        info = await client.info("server")
    except NoPermissionError:
        # Not needed for work, and the ping has shown that it is there.
        info = {}
    times = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        await client.ping()
        times.append((time.perf_counter() - began) * 1e3)
    median = statistics.median(times)
    name = str(info.get("server_name", "redis"))
    release = str(info.get("valkey_version", info.get("redis_version", ""))) or "(no INFO)"
    text = f"{name} {release} at {redacted(url)} answers in {median:.2f} ms"
    if median > _SLOW_MS:
        return note("server", text, "a server nearer by: an alert can't be faster than this")
    return good("server", text)


async def _durability(client: Redis, url: str) -> list[Finding]:
    """What the server keeps, of a cluster the node that keeps least."""
    try:
        found = [await _settings(one) for one in await servers(client)]
    except NoPermissionError:
        text = f"its settings can't be seen (no right to CONFIG GET) at {redacted(url)}"
        return [note("durability", text, "ACL: +config|get")]
    return [worst(map(_kept, found)), worst(map(_memory, found))]


async def _settings(client: Redis) -> dict[str, str]:
    raw: dict[Any, Any] = await client.config_get("append*", "maxmemory-policy")
    return {_text(name): _text(value) for name, value in raw.items()}


def _kept(found: Mapping[str, str]) -> Finding:
    append, sync = found.get("appendonly", "?"), found.get("appendfsync", "?")
    text = f"appendonly {append}, appendfsync {sync}"
    if append != "yes":
        return bad(
            "durability", f"{text}: a restart forgets everything", "CONFIG SET appendonly yes"
        )
    if sync != "always":
        mend = "CONFIG SET appendfsync always"
        return note("durability", f"{text}: a power cut loses the last second", mend)
    return good("durability", text)


def _memory(found: Mapping[str, str]) -> Finding:
    policy = found.get("maxmemory-policy", _NO_EVICTION)
    if policy == _NO_EVICTION:
        return good("memory", f"maxmemory-policy {policy}")
    mend = "CONFIG SET maxmemory-policy noeviction"
    return bad("memory", f"maxmemory-policy {policy}: may drop whole streams", mend)


async def _clock(client: Redis, *, signed: bool) -> Finding:
    """Compare clocks: a signed command from one that is off is refused. Of a cluster, the worst."""
    ahead_ms = max([await _ahead_ms(one) for one in await servers(client)], key=abs)
    way = "ahead of" if ahead_ms >= 0 else "behind"
    text = f"{abs(ahead_ms) / 1e3:.3f} s {way} the server's"
    mend = "synchronise it (NTP)"
    if ahead_ms > FRESH_AHEAD_MS or ahead_ms < -FRESH_BACK_MS:
        refused = f"{text}: signed commands from here are refused"
        return bad("clock", refused, mend) if signed else note("clock", refused, mend)
    return note("clock", text, mend) if abs(ahead_ms) > _SKEW_NOTE_MS else good("clock", text)


async def _ahead_ms(client: Redis) -> float:
    """How much this machine's clock is ahead of a server's."""
    before = time.time()
    seconds, micros = await client.time()
    return ((before + time.time()) / 2 - (seconds + micros / 1e6)) * 1e3


async def _runs(client: Redis, streams: Streams) -> Finding:
    live = await live_runs(client, streams)
    return good("live runs", ", ".join(live[:10]) if live else "none")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
