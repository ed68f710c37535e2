"""A burst of packets at once: how fast it is taken, what is shed, and that nothing urgent is."""

from __future__ import annotations

import time
from datetime import timedelta

import anyio

from bench.harness import Result, single
from bench.messages import signal, telemetry
from bench.server import Place, server
from tolaria_bus.leyline import MessagePriority
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.spool import Spool
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

ROUNDS = 5
PACKETS = 50_000
URGENT_EVERY = 50
CAPACITY = 65_536
"""As a worker has it by default."""
STREAMS = Streams()
TELEMETRY = STREAMS.telemetry("bench")


def run() -> Result:
    """Put a burst from one thread while the publisher runs in another."""
    result = Result("burst", f"{PACKETS:,} packets at once, one in {URGENT_EVERY} of them CRITICAL")
    taken, shed, absorbed, missing = [], [], [], []
    for _ in range(ROUNDS):
        with server() as place:
            found = anyio.run(_measure, place, backend_options={"use_uvloop": True})
        taken.append(found[0])
        absorbed.append(found[1])
        shed.append(float(found[2]))
        missing.append(float(found[3]))
    result.figures += [
        single("put, by the training thread", taken, "us a packet"),
        single("absorbed: put and delivered", absorbed, "s"),
        single("shed: LOW, NORMAL", shed, "packets"),
        single("missing: HIGH and above", missing, "packets", goal="0"),
    ]
    return result


async def _measure(place: Place) -> tuple[float, float, int, int]:
    with Spool(place.folder / "spool") as spool:
        outbox = Outbox(CAPACITY, spool, STREAMS, "bench")
        packets = [telemetry(number) for number in range(PACKETS - PACKETS // URGENT_EVERY)]
        signals = [signal(number) for number in range(PACKETS // URGENT_EVERY)]
        async with (
            connect(place.url, name="bench-bulk") as bulk,
            connect(place.url, name="bench-emergency") as emergency,
            anyio.create_task_group() as tasks,
        ):
            publisher = Publisher(bulk, emergency, outbox, KeyRing())
            tasks.start_soon(publisher.run)
            start = time.perf_counter()

            def put() -> float:
                for number, packet in enumerate(packets):
                    outbox.put(
                        packet,
                        stream=TELEMETRY,
                        priority=MessagePriority.MESSAGE_PRIORITY_NORMAL,
                    )
                    if number % (URGENT_EVERY - 1) == 0:
                        outbox.put(
                            signals[number // (URGENT_EVERY - 1)],
                            stream=STREAMS.emergency,
                            priority=MessagePriority.MESSAGE_PRIORITY_CRITICAL,
                        )
                return (time.perf_counter() - start) / PACKETS * 1e6

            taken = await anyio.to_thread.run_sync(put)
            if await publisher.drain(timedelta(seconds=60)):
                raise RuntimeError("the burst was not delivered within a minute")
            absorbed = time.perf_counter() - start
            urgent = await bulk.xlen(STREAMS.emergency)
            publisher.stop()
    return taken, absorbed, sum(outbox.shed.values()), len(signals) - urgent
