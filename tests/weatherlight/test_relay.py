"""A process that can't speak any more is spoken for: real ones, stopped in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.oona.faults.own_server import OwnServer
from tests.weatherlight.streams import STREAMS, alerts, noted, signals, wait_for
from tolaria_bus.leyline import EmergencyLevel, EmergencySignal, MessagePriority
from tolaria_bus.leyline.codec import encode
from tolaria_bus.oona.alone import OpenPublisher, open_publisher
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.safety import Signals, SignalView
from tolaria_bus.weatherlight.relay import Relay
from tolaria_bus.weatherlight.telling import Teller
from tolaria_bus.worker.bridge import BusOutbound

RUN = "r"
WORKER = """
import sys, time
from pathlib import Path
from tolaria_bus.leyline import EmergencyLevel, EmergencySignal
from tolaria_bus.leyline.codec import encode
from tolaria_bus.safety import Signals

signals = Signals.create(Path(sys.argv[1]))
signals.begin(41)
signals.step(42)
halt = EmergencySignal(level=EmergencyLevel.EMERGENCY_LEVEL_HALT, reason="too hot", run_id="r")
halt.triggered_at.GetCurrentTime()
halt.attributes.update(signal_id="s1", scope="self")
signals.emergency(encode(halt))
with signals.deadline("rollback", 0.001):
    print("rolling back", flush=True)
    sys.stdin.readline()
print("rolled back", flush=True)
sys.stdin.readline()
"""


@contextmanager
def worker(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """One that hangs in a rollback until it is given a line."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", WORKER, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "rolling back\n"
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def bus(url: str, spool: Path) -> AsyncIterator[OpenPublisher]:
    async with open_publisher(
        url, source="weatherlight/test", spool=spool, drain=timedelta(seconds=0.5)
    ) as publisher:
        yield publisher


def look(relay: Relay, folder: Path) -> None:
    with SignalView(folder) as view:
        assert view.refresh()
        identity = view.identity
        assert identity is not None
        relay.look(view, identity)


def test_what_a_worker_sends_is_left_in_its_block_first(tmp_path: Path) -> None:
    left = Signals.create(tmp_path)
    halt = EmergencySignal(level=EmergencyLevel.EMERGENCY_LEVEL_HALT, run_id=RUN)
    halt.attributes.update(signal_id="s1", scope="self")
    outbox = Outbox(100, None, STREAMS, RUN)
    BusOutbound(outbox, STREAMS, RUN, signals=left).emergency(halt)
    with SignalView(tmp_path) as view:
        assert view.refresh()
        (found,) = view.unrelayed()
        assert EmergencySignal.FromString(found.payload) == halt
    assert outbox.depth == 1
    left.close()


async def test_a_deadline_that_a_stopped_process_overruns_is_on_both_streams_once(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / RUN
    with worker(folder) as process:
        process.send_signal(signal.SIGSTOP)
        async with bus(redis_url, tmp_path / "spool") as publisher:
            relay = Relay(RUN, Teller(publisher, STREAMS))
            for _ in range(3):
                look(relay, folder)
            # A supervisor that doesn't know what the one before it has told.
            look(Relay(RUN, Teller(publisher, STREAMS)), folder)
            # To telemetry it is a metric like others; an alert is written once.
            (alert,) = await wait_for(lambda: alerts(redis, RUN, "deadline_overrun"))
            # Over another connection: it may come a little later.
            also = await wait_for(lambda: noted(redis, RUN, "deadline_overrun"))
            assert also[0].attributes == alert.attributes
            assert alert.attributes["deadline"] == "rollback"
            assert alert.attributes["pid"] == str(process.pid)
            assert await publisher.drain() == 0
            assert len(await alerts(redis, RUN, "deadline_overrun")) == 1
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "rolled back\n"
            look(relay, folder)
            assert await wait_for(lambda: noted(redis, RUN, "deadline_met_late"))


async def test_a_signal_left_by_a_dead_process_is_sent_and_not_twice_with_its_own(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / RUN
    with worker(folder) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        async with bus(redis_url, tmp_path / "spool") as publisher:
            relay = Relay(RUN, Teller(publisher, STREAMS))
            look(relay, folder)
            look(relay, folder)
            (sent,) = await wait_for(lambda: signals(redis))
            assert (sent.reason, relay.relayed) == ("too hot", 1)
            # The worker's own, from its spool, at its next start.
            publisher.put(
                sent,
                stream=STREAMS.emergency,
                priority=MessagePriority.MESSAGE_PRIORITY_CRITICAL,
                message_id="s1",
            )
            assert await publisher.drain() == 0
            assert len(await signals(redis)) == 1


@pytest.mark.usefixtures("state_home")
async def test_without_a_server_it_is_kept_and_sent_by_the_next_supervisor(tmp_path: Path) -> None:
    server, folder = OwnServer(tmp_path / "server"), tmp_path / RUN
    try:
        with worker(folder):
            server.kill()
            async with bus(server.url, tmp_path / "spool") as publisher:
                look(Relay(RUN, Teller(publisher, STREAMS)), folder)
        server.start()
        async with bus(server.url, tmp_path / "spool"), connect(server.url, name="t") as redis:
            (sent,) = await wait_for(lambda: signals(redis))
            assert sent.attributes["signal_id"] == "s1"
            assert await wait_for(lambda: alerts(redis, RUN, "deadline_overrun"))
    finally:
        server.stop()


@pytest.mark.parametrize("clock", ["wall", "monotonic"])
async def test_a_signal_of_long_ago_stops_nobody_today(
    redis: Redis, redis_url: str, tmp_path: Path, clock: str
) -> None:
    left = Signals.create(tmp_path)
    halt = EmergencySignal(level=EmergencyLevel.EMERGENCY_LEVEL_HALT, run_id=RUN)
    halt.triggered_at.GetCurrentTime()
    halt.attributes.update(signal_id="s1", scope="all")
    left.emergency(encode(halt))
    late = halt.triggered_at.ToNanoseconds() + 61 * 10**9
    async with bus(redis_url, tmp_path / "spool") as publisher:
        teller = Teller(publisher, STREAMS)
        if clock == "wall":
            relay = Relay(RUN, teller, wall_ns=lambda: late)
        else:
            relay = Relay(RUN, teller, monotonic_ns=lambda: 2**62)
        look(relay, tmp_path)
        assert relay.relayed == 0
    assert await signals(redis) == []
    left.close()
