"""The other side of an onslaught: sends hostile entries and reads the letters, in its own process.

What it makes and reads is many megabytes at a time, and none of it the consumer's: so that the
memory of the process that is looked at is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Any

from redis import Redis

from tests.oona.hostile import Hostile, Sent
from tolaria_bus.leyline import DeadLetter
from tolaria_bus.oona.opening import Opener
from tolaria_bus.oona.streams import dead_letters_of
from tolaria_bus.oona.trust import KeyRing


@dataclass(frozen=True)
class Plan:
    """What is to be sent.

    Attributes:
        url: The server.
        stream: A run's control stream.
        keys: What its reader trusts; empty: everybody.
        count: Entries.
        seed: Of the entries.
    """

    url: str
    stream: str
    keys: Mapping[str, bytes]
    count: int
    seed: int


class Attacker:
    """A process that sends entries; from :func:`attacker`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    async def send(self, most: int) -> dict[str, Sent]:
        """Send the next entries, at most so many; by their ids, their fields left out."""
        return await asyncio.wrap_future(self._pool.submit(_send, most))

    async def letters(self) -> list[DeadLetter]:
        """Read the dead letters and remove them; without what they hold."""
        found = await asyncio.wrap_future(self._pool.submit(_letters))
        return [DeadLetter.FromString(letter) for letter in found]


@contextmanager
def attacker(plan: Plan) -> Iterator[Attacker]:
    """One process for one plan."""
    spawned = get_context("spawn")
    with ProcessPoolExecutor(1, spawned, initializer=_begin, initargs=(plan,)) as pool:
        yield Attacker(pool)


@dataclass
class _State:
    client: Any
    stream: str
    entries: Iterator[Sent]
    opener: Opener


_states: list[_State] = []
"""Of this process: one."""


def _begin(plan: Plan) -> None:
    ring = KeyRing(dict(plan.keys))
    entries = Hostile(plan.seed, plan.stream, ring).entries(plan.count)
    client = Redis.from_url(plan.url, socket_timeout=120)
    _states.append(_State(client, plan.stream, entries, Opener(ring, None)))


def _send(most: int) -> dict[str, Sent]:
    (state,) = _states
    pipe = state.client.pipeline(transaction=False)
    sent = []
    for one in islice(state.entries, most):
        parts = (part for pair in one.fields for part in pair)
        pipe.execute_command("XADD", state.stream, "*", *parts)
        sent.append(Sent(one.kind, [], one.command_id))
    ids = [entry_id.decode() for entry_id in pipe.execute()]
    return dict(zip(ids, sent, strict=True))


def _letters() -> list[bytes]:
    (state,) = _states
    dead = dead_letters_of(state.stream)
    found = []
    while page := state.client.xrange(dead, count=100):
        for entry_id, fields in page:
            letter = state.opener.open(dead, entry_id, fields).message
            assert isinstance(letter, DeadLetter)
            # The rest may be a megabyte.
            letter.ClearField("fields")
            found.append(letter.SerializeToString())
        state.client.xdel(dead, *(entry_id for entry_id, _ in page))
    return found
