"""Whatever groups do and in which order: nothing goes that one needs, nothing stays for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from tests.oona.bus import Events
from tests.oona.test_retention import DAY, STATE, add, ids, read, recall
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.oona.retention import Janitor, Retention

NODE = 4
"""Entries of the server's nodes here; with 100, as by default, streams would have to be long."""
LENGTH = 20
OLD = 5  # days

some = st.sampled_from(["a", "b", "c"])
few = st.integers(1, 12)
steps = st.one_of(
    st.tuples(st.just("add"), few, st.integers(0, 3)),
    st.tuples(st.just("join"), some, st.booleans()),
    st.tuples(st.just("read"), some, few),
    st.tuples(st.just("ack"), some, st.integers(0, 11)),
    st.tuples(st.just("cut"), few),
    st.tuples(st.just("round")),
)


@pytest.fixture(scope="module")
def small_nodes(server: EmbeddedServer) -> Iterator[str]:
    """The URL of a server with small nodes."""
    with BlockingRedis.from_url(server.url) as client:
        before: Any = client.config_get("stream-node-max-entries")
        client.config_set("stream-node-max-entries", NODE)
        yield server.url
        client.config_set("stream-node-max-entries", *before.values())


@dataclass
class Group:
    """What one has done.

    Attributes:
        position: How many entries were there before the next one that it gets.
        pending: What it was given and hasn't finished.
        lost: Entries cut before it had them, since the last round.
        told: Pending entries that were told to be gone.
        known: It was there in the last round.
    """

    position: int
    pending: list[int] = field(default_factory=list)
    lost: int = 0
    told: set[int] = field(default_factory=set)
    known: bool = False


@dataclass
class Model:
    """A stream as it has to be: each entry by its number.

    Attributes:
        ids: Of all entries ever added.
        ages: Of them, in days.
        first: The first that is still there.
        looked: The first that was there after the last round.
    """

    redis: Redis
    events: Events = field(default_factory=Events)
    groups: dict[str, Group] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    first: int = 0
    looked: int = 0

    async def add(self, count: int, younger: int) -> None:
        age = max(0.5, (self.ages[-1] if self.ages else 7.5) - younger)
        self.ids += await add(self.redis, *[age * DAY] * count)
        self.ages += [age] * count

    async def join(self, name: str, at_end: bool) -> None:
        if name not in self.groups:
            start = "$" if at_end else "0"
            await self.redis.xgroup_create(STATE, name, start, mkstream=True)
            self.groups[name] = Group(len(self.ids) if at_end else self.first)

    async def read(self, name: str, count: int) -> None:
        if (group := self.groups.get(name)) is None:
            return
        start = max(group.position, self.first)
        numbers = range(start, min(start + count, len(self.ids)))
        assert await read(self.redis, name, count) == [self.ids[number] for number in numbers]
        if numbers:
            group.pending += numbers
            group.position = numbers[-1] + 1

    async def ack(self, name: str, place: int) -> None:
        group = self.groups.get(name)
        if group is not None and place < len(group.pending):
            assert await self.redis.xack(STATE, name, self.ids[group.pending.pop(place)])

    async def cut(self, count: int) -> None:
        """As publishing does at the hard limit."""
        first = min(self.first + count, len(self.ids))
        await self.redis.xtrim(STATE, maxlen=len(self.ids) - first, approximate=False)
        for group in self.groups.values():
            group.lost += max(0, first - max(group.position, self.first))
        self.first = first

    async def round(self) -> None:
        needed = self._needed()
        cut = self.first
        self.events.seen.clear()
        kept = Retention(LENGTH, OLD * DAY, 100_000)
        await Janitor(self.redis, {STATE: kept}, interval=timedelta(), on_event=self.events).round()
        left = await ids(self.redis)
        self.first = len(self.ids) - len(left)
        assert left == self.ids[self.first :]
        assert self.first <= needed, "nothing goes that a group needs"
        old = sum(age > OLD for age in self.ages)
        assert self.first >= min(old, needed), "nothing old stays for nobody"
        assert len(left) < LENGTH + NODE or needed - self.first < NODE, "nor over the length"
        self._check_told(cut)

    def _needed(self) -> int:
        """The first entry that a group needs; that of the future, if it is none of these."""
        needs = [len(self.ids)]
        for group in self.groups.values():
            needs += [group.position, *(one for one in group.pending if one >= self.first)]
        return max(self.first, min(needs))

    def _check_told(self, cut: int) -> None:
        told = {detail["group"]: detail for detail in self.events.of("entries_cut")}
        assert len(told) == len(self.events.seen) - len(self.events.of("group_removed"))
        for name, group in self.groups.items():
            unread = told[name]["unread"] if name in told else "0"
            most = int(unread.removeprefix("up to "))
            if not group.known:
                assert most <= group.lost, "of what was before it was first seen, it is told less"
            elif unread.isdigit():
                assert most == group.lost
            else:
                assert group.lost <= most <= cut - self.looked, "the others went in earlier rounds"
            gone = {one for one in group.pending if one < self.first} - group.told
            assert len(gone) == (int(told[name]["pending"]) if name in told else 0)
            group.told |= gone
            group.lost = 0
            group.known = True
        self.looked = self.first


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=40))
@example([("join", "a", True), ("add", 9, 0), ("round",), ("read", "a", 3), ("cut", 7),
          ("read", "a", 1), ("round",), ("cut", 2), ("round",)])  # fmt: skip
def test_nothing_goes_that_a_living_group_needs_and_nothing_stays_for_nobody(
    small_nodes: str, taken: list[tuple[Any, ...]]
):
    async def play() -> None:
        async with connect(small_nodes, name="tests") as redis:
            await redis.flushall()
            await redis.xgroup_create(STATE, "dead", "0", mkstream=True)
            await recall(redis, dead=8 * DAY)
            model = Model(redis)
            for name, *arguments in [*taken, ("round",), ("round",)]:
                await getattr(model, name)(*arguments)

    asyncio.run(play())
