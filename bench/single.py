"""One packet at a time: from ``put`` to the server's reply, against one raw XADD at a time."""

from __future__ import annotations

import os
import time
from base64 import b64encode
from typing import Any

import anyio

from bench.harness import Result, compare, percentile
from bench.messages import telemetry
from bench.server import Place, server
from tolaria_bus.leyline import MessagePriority
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.lanes import Packet
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

ROUNDS = 9
PACKETS = 500
STREAMS = Streams()
STREAM = STREAMS.telemetry("bench")


def run() -> Result:
    """Signed packets, one after the other, on one event loop."""
    result = Result("single", f"{PACKETS} packets, each put when the one before was answered")
    with server() as place:
        found = anyio.run(_measure, place, backend_options={"use_uvloop": True})
    for share in (0.5, 0.99):
        ours, raw = ([percentile(round_, share) for round_ in found[name]] for name in found)
        goal = "<= 1.3 x" if share == 0.5 else ""
        what = f"put to reply, signed, p{share * 100:.0f}; baseline: redis.asyncio XADD"
        result.figures.append(compare(what, ours, raw, "us", goal=goal))
    return result


async def _measure(place: Place) -> dict[str, list[list[float]]]:
    ring = KeyRing.parse(f"bench:{b64encode(os.urandom(32)).decode()}")
    found: dict[str, list[list[float]]] = {"ours": [], "raw": []}
    async with (
        connect(place.url, name="bench-bulk") as bulk,
        connect(place.url, name="bench-emergency") as emergency,
        connect(place.url, name="bench-raw") as raw,
        anyio.create_task_group() as tasks,
    ):
        outbox = _Timed(1024, None, STREAMS, "bench")
        publisher = Publisher(bulk, emergency, outbox, ring)
        tasks.start_soon(publisher.run)
        fields: Any = seal(telemetry(0), stream=STREAM, source="run/bench", ring=ring)
        for number in range(ROUNDS + 1):
            waits = [await _put(publisher, outbox, n) for n in range(PACKETS)]
            base = []
            for _ in range(PACKETS):
                start = time.perf_counter_ns()
                await raw.xadd(STREAM, fields, maxlen=100_000, approximate=True)
                base.append((time.perf_counter_ns() - start) / 1e3)
            if number:
                found["ours"].append(waits)
                found["raw"].append(base)
        publisher.stop()
    return found


class _Timed(Outbox):
    """Knows when the server's last reply came."""

    replied = 0

    def delivered(self, packet: Packet) -> None:
        self.replied = time.perf_counter_ns()
        super().delivered(packet)


async def _put(publisher: Publisher, outbox: _Timed, number: int) -> float:
    packet = telemetry(number)
    start = time.perf_counter_ns()
    outbox.put(packet, stream=STREAM, priority=MessagePriority.MESSAGE_PRIORITY_NORMAL)
    await publisher.progress()
    if outbox.depth:
        raise RuntimeError("the packet was not delivered")
    return (outbox.replied - start) / 1e3
