"""A worker is started when its server is there, and one that can't begin is given up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from tests.weatherlight.streams import STREAMS, alerts, noted, wait_for
from tolaria_bus.oona.alone import open_publisher
from tolaria_bus.weatherlight import plan
from tolaria_bus.weatherlight.judging import Health
from tolaria_bus.weatherlight.keeper import Keeper
from tolaria_bus.weatherlight.telling import Teller
from tolaria_bus.weatherlight.terms import Terms

OTHER = """
import sys, time
from pathlib import Path
from tolaria_bus.safety import Signals, WorkerState

print("ready", flush=True)
sys.stdin.readline()
signals = Signals.create(Path(sys.argv[1]))
signals.state(WorkerState.RUNNING)
print("written", flush=True)
while True:
    signals.beat()
    signals.progress()
    time.sleep(0.01)
"""


@contextmanager
def another_worker(folder: Path) -> Iterator[tuple[int, Callable[[], bool]]]:
    """A process that is about to work on a run; its number, and what lets it show itself."""
    command, pipe = [sys.executable, "-c", OTHER, str(folder)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        heard, said = process.stdin, process.stdout
        assert heard is not None
        assert said is not None
        assert said.readline() == "ready\n"

        def show() -> bool:
            heard.write("now\n")
            heard.flush()
            return said.readline() == "written\n"

        try:
            yield process.pid, show
        finally:
            process.kill()


@pytest.mark.slow
async def test_it_waits_for_the_server_and_says_what_a_worker_died_of(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    words = [f"runs_dir={tmp_path}", "restart_limit=1", "restart_seconds=0"]
    (planned,) = plan(["nowhere.py:Nothing"], run="r", file=None, assignments=words)
    planned.folder.mkdir()
    terms = Terms.of(planned.known, {**os.environ, "TOLARIA_REDIS_URL": redis_url}, inherit=False)
    up: list[bool] = []
    drain = timedelta(seconds=30)
    async with open_publisher(redis_url, source="weatherlight/test", drain=drain) as publisher:
        keeper = Keeper(planned, terms, Teller(publisher, STREAMS), server_up=lambda: bool(up))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.run)
            assert await wait_for(lambda: noted(redis, "r", "worker_waits"))
            assert await noted(redis, "r", "worker_started") == []
            up.append(True)
    assert len(await noted(redis, "r", "worker_started")) == 2
    (died,) = await alerts(redis, "r", "worker_died")
    (given_up,) = await alerts(redis, "r", "worker_given_up")
    for told in (died, given_up):
        assert told.attributes["how"] == "exit code 2"
        assert "nowhere.py" in told.attributes["reason"]
    assert (keeper.given_up, keeper.condition.health) == (True, Health.ENDED)


@pytest.mark.slow
async def test_a_worker_that_finds_the_run_taken_is_no_death_and_the_other_is_adopted(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    """As after the death of a Weatherlight that had just started one."""
    words = [f"runs_dir={tmp_path}", "restart_limit=0"]
    (planned,) = plan(["nowhere.py:Nothing"], run="r", file=None, assignments=words)
    planned.folder.mkdir()
    terms = Terms.of(planned.known, {**os.environ, "TOLARIA_REDIS_URL": redis_url}, inherit=False)
    with another_worker(planned.folder) as (pid, show):
        async with (
            open_publisher(redis_url, source="weatherlight/test") as publisher,
            anyio.create_task_group() as tasks,
        ):
            # Asked after it was looked for a worker to adopt, and before one is started.
            keeper = Keeper(planned, terms, Teller(publisher, STREAMS), server_up=show)
            tasks.start_soon(keeper.run)
            (adopted,) = await wait_for(lambda: noted(redis, "r", "worker_adopted"))
            assert adopted.attributes["pid"] == str(pid)
            assert len(await noted(redis, "r", "worker_started")) == 1
            tasks.cancel_scope.cancel()
        assert await alerts(redis, "r", "worker_died") == []
        assert await alerts(redis, "r", "worker_given_up") == []
