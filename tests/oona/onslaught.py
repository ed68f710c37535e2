"""Hostile entries through a real consumer on a real server, and what came of them.

Entries are sent, and letters read, by another process, so that this one has the consumer alone: its
stalls and its memory are the consumer's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median
from typing import Any

import anyio
import psutil

from tests.oona.attacker import Plan, attacker
from tests.oona.hostile import Sent
from tolaria_bus.leyline import AdaptationCommand, BusMessageType, DeadLetter
from tolaria_bus.oona.connection import ServerClock, connect
from tolaria_bus.oona.consumer import Consumer, Received
from tolaria_bus.oona.opening import REFUSED_REASONS, Opener
from tolaria_bus.oona.trust import KeyRing, NonceWindow

GROUP = "tolaria"
CHUNK = 500
"""Entries sent before those sent earlier are looked at: what bounds the server's memory."""
WARM_UP = 1_000
"""Entries before memory is looked at."""
WINDOW = 2_000
"""Entries at either end whose memory is compared."""
BEAT = 0.005  # seconds
LIMIT = 300.0  # seconds for one chunk: much longer than it takes


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
        peak: The most that it held while a chunk was read, by chunk.
        wrong: What should not have been, in words.
    """

    sent: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    handled: int = 0
    seconds: float = 0.0
    stall: float = 0.0
    told: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def growth(self) -> int:
        """Bytes by which the median of the last ``WINDOW`` entries is over that of the first.

        Those of a warm-up left out. Not the most: what the allocator has not given back yet is up
        to how many megabytes happen to be in one chunk.
        """
        begin, length = WARM_UP // CHUNK, WINDOW // CHUNK
        first, last = self.memory[begin : begin + length], self.memory[-length:]
        return int(median(last) - median(first))

    @property
    def swing(self) -> int:
        """Bytes between the least and the most that were held at any time after the warm-up."""
        begin = WARM_UP // CHUNK
        return max(self.peak[begin:]) - min(self.memory[begin:])


async def onslaught(
    url: str, stream: str, keys: Mapping[str, bytes], count: int, seed: int
) -> Outcome:
    """Send ``count`` hostile entries and have them read.

    Args:
        url: A server that has no such stream.
        stream: A run's control stream.
        keys: What the reader trusts; empty: everybody.
        count: How many, good ones among them.
        seed: Of the entries.
    """
    found = Outcome()
    handled: list[tuple[str, str]] = []
    ring = KeyRing(dict(keys))

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
        with attacker(Plan(url, stream, keys, count, seed)) as other:
            while True:
                found.peak.append(0)
                began = time.perf_counter()
                chunk = await other.send(CHUNK)
                if not chunk:
                    break
                with anyio.fail_after(LIMIT):
                    while await acks.xlen(stream):  # noqa: ASYNC110 - nobody tells
                        await anyio.sleep(BEAT)
                found.seconds += time.perf_counter() - began
                _judge(found, chunk, handled, await other.letters())
                handled.clear()
                found.memory.append(psutil.Process().memory_info().rss)
        groups: Any = await acks.xinfo_groups(stream)
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
    process = psutil.Process()
    while True:
        began = time.monotonic()
        await anyio.sleep(BEAT)
        found.stall = max(found.stall, time.monotonic() - began - BEAT)
        if found.peak:
            found.peak[-1] = max(found.peak[-1], process.memory_info().rss)


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
