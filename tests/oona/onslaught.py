"""Hostile entries through a real consumer on a real server, and what came of them.

Entries are sent, and letters read, in a thread of their own, so that the event loop has the
consumer alone and its stalls are the consumer's.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from statistics import median
from typing import Any

import anyio
import psutil
import redis as blocking_redis

from tests.oona.hostile import Hostile, Sent
from tolaria_bus.leyline import AdaptationCommand, BusMessageType, DeadLetter
from tolaria_bus.oona.connection import ServerClock, connect
from tolaria_bus.oona.consumer import Consumer, Received
from tolaria_bus.oona.opening import REFUSED_REASONS, Opener
from tolaria_bus.oona.streams import dead_letters_of
from tolaria_bus.oona.trust import KeyRing, NonceWindow

GROUP = "tolaria"
CHUNK = 500
"""Entries sent before those sent earlier are looked at: what bounds the server's memory."""
BEAT = 0.005  # seconds
LIMIT = 120.0  # seconds for one chunk: much longer than it takes


@dataclass
class Outcome:
    """What became of the entries.

    Attributes:
        sent: Entries, by kind.
        dead: Dead letters, by reason.
        handled: Entries given to the handler.
        seconds: How long reading them took, sending and checking left out.
        stall: The longest time that the event loop stood still, in seconds.
        told: Events, by name.
        memory: Bytes that this process holds, after each chunk.
        wrong: What should not have been, in words.
    """

    sent: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    handled: int = 0
    seconds: float = 0.0
    stall: float = 0.0
    told: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def growth(self) -> int:
        """Bytes by which the median of the last third is over that of the first.

        Not the most: that is up to how many megabytes happen to be in one chunk.
        """
        third = max(1, len(self.memory) // 3)
        return int(median(self.memory[-third:]) - median(self.memory[:third]))


async def onslaught(url: str, stream: str, ring: KeyRing, count: int, seed: int) -> Outcome:
    """Send ``count`` hostile entries and have them read.

    Args:
        url: A server that has no such stream.
        stream: A run's control stream.
        ring: What the reader trusts.
        count: How many, good ones among them.
        seed: Of the entries.
    """
    found = Outcome()
    handled: list[tuple[str, str]] = []

    async def handler(received: Received) -> None:
        message = received.opened.message
        assert isinstance(message, AdaptationCommand)
        # Ids may be a megabyte long.
        handled.append((received.entry_id, message.command_id[:40]))
        received.ack_soon()

    block = timedelta(milliseconds=200)
    clock = ServerClock()
    async with (
        connect(url, name="reader", block=block) as reader,
        connect(url, name="acks") as acks,
        anyio.create_task_group() as tasks,
    ):
        await clock.sync(acks)
        consumer = Consumer(
            reader,
            acks,
            stream=stream,
            group=GROUP,
            name="me",
            opener=Opener(ring, NonceWindow(), server_now_ms=clock.now_ms),
            ring=ring,
            accept={BusMessageType.BUS_MESSAGE_TYPE_ADAPTATION_COMMAND},
            delete=True,
            block=block,
            on_event=lambda name, _: found.told.update([name]),
        )
        await consumer.prepare()
        tasks.start_soon(consumer.run, handler)
        tasks.start_soon(_beat, found)
        with blocking_redis.Redis.from_url(url, socket_timeout=30) as client:
            entries = Hostile(seed, stream, ring).entries(count)
            while chunk := await anyio.to_thread.run_sync(lambda: list(islice(entries, CHUNK))):
                handled.clear()
                began = time.perf_counter()
                ids = await anyio.to_thread.run_sync(_send, client, stream, chunk)
                with anyio.fail_after(LIMIT):
                    while await acks.xlen(stream):  # noqa: ASYNC110 - nobody tells
                        await anyio.sleep(BEAT)
                found.seconds += time.perf_counter() - began
                letters = await anyio.to_thread.run_sync(_letters, client, stream, ring)
                _judge(found, dict(zip(ids, chunk, strict=True)), handled, letters)
                found.memory.append(psutil.Process().memory_info().rss)
            groups: Any = client.xinfo_groups(stream)
            if [(group["pending"], group["lag"]) for group in groups] != [(0, 0)]:
                found.wrong.append(f"left in the group: {groups}")
        if unexpected := found.told.keys() - {"dead_letter", "bad_signatures"}:
            found.wrong.append(f"told: {sorted(unexpected)}")
        if len(consumer.in_flight) or consumer.dead != found.dead or consumer.lost:
            found.wrong.append(f"counted {consumer.dead}, lost {consumer.lost}")
        await consumer.stop()
        tasks.cancel_scope.cancel()
    return found


async def _beat(found: Outcome) -> None:
    while True:
        began = time.monotonic()
        await anyio.sleep(BEAT)
        found.stall = max(found.stall, time.monotonic() - began - BEAT)


def _send(client: Any, stream: str, chunk: list[Sent]) -> list[str]:
    pipe = client.pipeline(transaction=False)
    for sent in chunk:
        pipe.execute_command("XADD", stream, "*", *(part for pair in sent.fields for part in pair))
    return [entry_id.decode() for entry_id in pipe.execute()]


def _letters(client: Any, stream: str, ring: KeyRing) -> list[DeadLetter]:
    """Read the dead letters and remove them."""
    dead = dead_letters_of(stream)
    opener = Opener(ring, None)
    found: list[DeadLetter] = []
    while page := client.xrange(dead, count=100):
        for entry_id, fields in page:
            letter = opener.open(dead, entry_id, fields).message
            assert isinstance(letter, DeadLetter)
            # The rest may be a megabyte.
            letter.ClearField("fields")
            found.append(letter)
        client.xdel(dead, *(entry_id for entry_id, _ in page))
    return found


def _judge(
    found: Outcome,
    chunk: dict[str, Sent],
    handled: list[tuple[str, str]],
    letters: list[DeadLetter],
) -> None:
    found.sent.update(sent.kind for sent in chunk.values())
    found.dead.update(letter.reason for letter in letters)
    found.handled += len(handled)
    ends = Counter([*(entry_id for entry_id, _ in handled), *(one.entry_id for one in letters)])
    for entry_id, sent in chunk.items():
        if ends.pop(entry_id, 0) != 1:
            found.wrong.append(f"{sent.kind}: not handled or dead exactly once")
    found.wrong += [f"{entry_id}: never sent" for entry_id in ends]
    found.wrong += [
        f"{letter.reason}: {letter.detail}"
        for letter in letters
        if letter.reason not in REFUSED_REASONS or not letter.detail
    ]
    good = [sent.command_id for sent in chunk.values() if sent.kind == "good"]
    kinds = {entry_id: sent.kind for entry_id, sent in chunk.items()}
    came = [command_id for entry_id, command_id in handled if kinds.get(entry_id) == "good"]
    if came != good:
        found.wrong.append("good commands are missing or out of order")
    places = [entry_id for entry_id, _ in handled]
    if places != sorted(places, key=lambda entry_id: [int(n) for n in entry_id.split("-")]):
        found.wrong.append("entries were handled out of order")
