"""From a cause on the training thread to a third party's reader of the emergency stream."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from base64 import b64encode
from dataclasses import dataclass
from datetime import timedelta

import anyio
import torch

from bench.harness import Result, percentile, single
from bench.messages import telemetry
from bench.server import Place, server
from tolaria_bus.leyline import EmergencySignal, MessagePriority
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.spool import Spool
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing

SIGNALS = 300
QUEUED = 100_000
PAUSE = 0.005
STREAMS = Streams()
READER = """
import sys, time, redis
client, last = redis.Redis.from_url(sys.argv[1]), "$"
print("ready", flush=True)
left = int(sys.argv[2])
while left:
    for _, entries in client.xread({sys.argv[3]: last}, block=20000):
        now = time.monotonic_ns()
        for last, _ in entries:
            print(now, flush=True)
            left -= 1
"""


@dataclass(frozen=True)
class _Load:
    """What goes on beside the signals.

    Attributes:
        name: In words.
        goal: For the reader's wait at p99, in ms.
        threads: Of the training; 0: it sleeps instead.
        queued: NORMAL packets that wait at any time.
    """

    name: str
    goal: float
    threads: int = 0
    queued: int = 0


def run() -> Result:
    """Raise signals: with the machine idle, behind a long queue, beside a training."""
    result = Result("emergency", f"{SIGNALS} signals, read by another process with plain redis-py")
    cores = len(os.sched_getaffinity(0))
    loads = [
        _Load("idle", 10.0),
        _Load(f"{QUEUED:,} NORMAL queued", 10.0, queued=QUEUED),
        _Load("training on all cores", 10.0, threads=cores),
    ]
    if cores > 1:
        loads.append(_Load("training with one core left", 5.0, threads=cores - 1))
    before = torch.get_num_threads()
    for load in loads:
        with server() as place:
            waits = anyio.run(_measure, place, load, backend_options={"use_uvloop": True})
        for share in (0.5, 0.99):
            what = f"cause to reader, {load.name}, p{share * 100:.0f}"
            value = percentile(waits, share)
            result.figures.append(single(what, [value], "ms", goal=f"<= {load.goal:g}"))
    torch.set_num_threads(before)
    return result


async def _measure(place: Place, load: _Load) -> list[float]:
    spool = Spool(place.folder / "spool")
    outbox = Outbox(4 * QUEUED, spool, STREAMS, "bench")
    ring = KeyRing.parse(f"bench:{b64encode(os.urandom(32)).decode()}")
    command = [sys.executable, "-c", READER, place.url, str(SIGNALS), STREAMS.emergency]
    # Started before anything is measured: it may block the loop.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:  # noqa: ASYNC220
        assert reader.stdout is not None
        lines = reader.stdout
        await anyio.to_thread.run_sync(lines.readline)
        await anyio.sleep(0.2)  # Until its first read blocks in the server.
        causes: list[int] = []
        thread = threading.Thread(target=_train, args=(outbox, causes, load), daemon=True)
        async with (
            connect(place.url, name="bench-bulk") as bulk,
            connect(place.url, name="bench-emergency") as emergency,
            anyio.create_task_group() as tasks,
        ):
            publisher = Publisher(bulk, emergency, outbox, ring)
            tasks.start_soon(publisher.run)
            gc.collect()
            _fill(outbox, load.queued)
            thread.start()
            seen = await anyio.to_thread.run_sync(
                lambda: [int(lines.readline()) for _ in range(SIGNALS)]
            )
            await publisher.drain(timedelta(seconds=30))
            publisher.stop()
        thread.join()
    spool.close()
    return [(there - cause) / 1e6 for cause, there in zip(causes, seen, strict=True)]


def _fill(outbox: Outbox, wanted: int) -> None:
    """Have so many NORMAL packets wait; the publisher takes some ten thousand a second."""
    for number in range(wanted - outbox.depth):
        outbox.put(
            telemetry(number),
            stream=STREAMS.telemetry("bench"),
            priority=MessagePriority.MESSAGE_PRIORITY_NORMAL,
        )


def _train(outbox: Outbox, causes: list[int], load: _Load) -> None:
    """Steps of a few milliseconds, or sleeps of the same length, and a signal after each."""
    if load.threads:
        torch.set_num_threads(load.threads)
    weight = torch.randn(512, 512, requires_grad=True)
    for number in range(SIGNALS):
        # Before the pause: what is measured begins with the cause.
        _fill(outbox, load.queued)
        end = time.monotonic() + PAUSE
        while load.threads and time.monotonic() < end:
            (weight @ weight).sum().backward()  # type: ignore[no-untyped-call]
        if not load.threads:
            time.sleep(PAUSE)
        signal = EmergencySignal(version=1, reason=f"bench {number}", run_id="bench")
        causes.append(time.monotonic_ns())
        outbox.put(
            signal,
            stream=STREAMS.emergency,
            priority=MessagePriority.MESSAGE_PRIORITY_CRITICAL,
        )
