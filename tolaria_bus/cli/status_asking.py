"""How runs are, by what their workers say each second and by what the server alone knows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio
import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tolaria_bus.cli.follow import reach
from tolaria_bus.cli.leaving import interrupt_at_once
from tolaria_bus.cli.locate import Asked, NotLocated, Place, locate
from tolaria_bus.cli.running_state import State, judge
from tolaria_bus.cli.status_lines import page, table
from tolaria_bus.cli.style import wants_colour
from tolaria_bus.cli.who import known_runs
from tolaria_bus.oona.connection import redacted
from tolaria_bus.oona.directory import status as status_of
from tolaria_bus.oona.running import running
from tolaria_bus.oona.streams import Streams
from tolaria_bus.settings import Settings, load

_GROUP: Final = "tolaria"
"""The worker's group of its own control stream."""
_BAD: Final = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """One run as it is seen from here.

    Attributes:
        run: Its id.
        told: What its worker last said; empty if it never did.
        state: What that means now.
        control: Of its control stream: commands that nobody has read (``lag``, ``None`` where the
            server can't tell), and that are being handled (``pending``).
        dead_letters: How many there are.
    """

    run: str
    told: dict[str, Any]
    state: State
    control: dict[str, int | None]
    dead_letters: int

    def to_json(self) -> dict[str, Any]:
        """What the worker said, and ``state``, ``why``, ``age``, ``control``, ``dead_letters``."""
        return {
            **self.told,
            "run": self.run,
            "state": self.state.name,
            "why": self.state.why,
            "age": self.state.age,
            "control": self.control,
            "dead_letters": self.dead_letters,
        }


def show(where: Asked, *, one: bool, as_json: bool) -> int:
    """Print how runs are.

    Args:
        where: Server and run.
        one: One run, in full; else all, a line each.
        as_json: JSON objects, one a line.

    Returns:
        The exit code: 1 if the one, or any, isn't as it should be.

    Raises:
        NotLocated: There is no server, or no such run on it.
        ServerUnreachable: It doesn't answer.
    """
    settings, _ = load()
    places = [locate(where, settings)] if one else _places(where, settings)
    interrupt_at_once()
    seen = [run for place in places for run in anyio.run(_look, place, one)]
    colour = wants_colour(sys.stdout)
    if as_json:
        for run in seen:
            print(orjson.dumps(run.to_json()).decode())
    else:
        for line in page(seen[0], colour=colour) if one else table(seen, colour=colour):
            print(line)
    return _BAD if any(run.state.bad for run in seen) else 0


def _places(where: Asked, settings: Settings) -> list[Place]:
    """The server that is named; else those of all runs that are live on this machine."""
    live = running()
    if where.redis is not None or settings.redis_url is not None or len(live) < 2:
        return [locate(where, settings)]
    return [Place(item.url, item.run, Streams(settings.prefix), "live here") for item in live]


async def _look(place: Place, one: bool) -> Sequence[Seen]:
    async with reach(place.url, name="tolaria-status") as client:
        known = await known_runs(client, place.streams)
        if not one:
            return [await _see(client, place.streams, run) for run in known]
        run = place.run
        if run is None:
            if len(known) != 1:
                raise NotLocated(f"{len(known)} runs are known there: name one")
            run = known[0]
        if run not in known:
            others = f"; known there: {', '.join(known[:8])}" if known else ""
            raise NotLocated(f"run {run}: {redacted(place.url)} knows no such run{others}")
        return [await _see(client, place.streams, run)]


async def _see(client: Redis, streams: Streams, run: str) -> Seen:
    told = await status_of(client, streams, run) or {}
    held = bool(await client.exists(streams.lease(run)))
    seconds, micros = await client.time()
    return Seen(
        run=run,
        told=told,
        state=judge(told, now=seconds + micros / 1e6, lease_held=held),
        control=await _control(client, streams.control(run)),
        dead_letters=await client.xlen(streams.dead(run)),
    )


async def _control(client: Redis, stream: str) -> dict[str, int | None]:
    try:
        groups: Any = await client.xinfo_groups(stream)
    except ResponseError:
        return {"lag": 0, "pending": 0}  # No stream yet.
    for group in groups:
        name = group["name"]
        if (name.decode() if isinstance(name, bytes) else name) == _GROUP:
            return {"lag": group.get("lag"), "pending": int(group["pending"])}
    # Nobody has read from it so far.
    return {"lag": await client.xlen(stream), "pending": 0}
