"""A worker under watch is heard when it rings, however long it is until the next look."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from tests.weatherlight.streams import STREAMS, alerts, signals, wait_for
from tolaria_bus.oona.alone import open_publisher
from tolaria_bus.safety import SignalView
from tolaria_bus.safety.layout import process_began
from tolaria_bus.settings import load
from tolaria_bus.weatherlight import vigil
from tolaria_bus.weatherlight.process import WorkerProcess
from tolaria_bus.weatherlight.relay import Relay
from tolaria_bus.weatherlight.telling import Teller
from tolaria_bus.weatherlight.terms import Terms

RUN = "r"
DRAIN = timedelta(seconds=0.5)
WORKER = """
import sys
from pathlib import Path
from tolaria_bus.leyline import EmergencyLevel, EmergencySignal
from tolaria_bus.leyline.codec import encode
from tolaria_bus.safety import Signals

signals = Signals.create(Path(sys.argv[1]))
signals.begin(41)
signals.step(42)
print("works", flush=True)
sys.stdin.readline()
halt = EmergencySignal(level=EmergencyLevel.EMERGENCY_LEVEL_HALT, reason="too hot", run_id="r")
halt.triggered_at.GetCurrentTime()
halt.attributes.update(signal_id="s1", scope="self")
signals.emergency(encode(halt))
sys.stdin.readline()
signals.deadline("rollback", 0.05)
sys.stdin.readline()
"""


@contextmanager
def worker(folder: Path) -> Iterator[tuple[WorkerProcess, Callable[[], None]]]:
    """One at work; its process, and what lets it go on to the next thing."""
    command, pipe = [sys.executable, "-c", WORKER, str(folder)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        heard, said = process.stdin, process.stdout
        assert heard is not None
        assert said is not None
        assert said.readline() == "works\n"

        def go_on() -> None:
            heard.write("\n")
            heard.flush()

        try:
            yield WorkerProcess(folder, process.pid, process_began(process.pid)), go_on
        finally:
            process.kill()


async def test_an_emergency_and_an_overrun_deadline_are_heard_without_waiting_for_a_look(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vigil, "TICK", 3600.0)
    settings, _ = load()
    async with open_publisher(
        redis_url, source="weatherlight/test", spool=tmp_path / "spool", drain=DRAIN
    ) as publisher:
        teller = Teller(publisher, STREAMS)
        with worker(tmp_path) as (process, go_on), SignalView(tmp_path) as view:
            watch = vigil.Vigil(
                RUN,
                process,
                view,
                vigil.Condition(),
                terms=Terms.of(settings, {}, inherit=False),
                teller=teller,
                relay=Relay(RUN, teller),
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.keep, anyio.Event())
                await anyio.wait_all_tasks_blocked()
                go_on()
                (sent,) = await wait_for(lambda: signals(redis))
                assert sent.reason == "too hot"
                go_on()
                (alert,) = await wait_for(lambda: alerts(redis, RUN, "deadline_overrun"))
                assert alert.attributes["deadline"] == "rollback"
                tasks.cancel_scope.cancel()
