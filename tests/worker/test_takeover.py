"""A worker that was thought dead can't speak for its run any more, and says so when it wakes."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import CONTROL, EMERGENCY, OUTCOMES, messages
from tests.worker.processes import Process, Terminal, summary
from tolaria_bus.leyline import CommandOutcome, TelemetryPacket

PATIENCE = 120.0
WORDS = ("run", "tiny.py:Tiny", "--run", "r", "--epochs", "4000", "--set", "lease_seconds=1")


async def answered(redis: Redis, command_id: str, code: str = "ok") -> CommandOutcome:
    """Wait for the outcome of a command."""
    with anyio.fail_after(PATIENCE):
        while True:
            found: list[CommandOutcome] = await messages(redis, OUTCOMES, CommandOutcome)
            for outcome in found:
                if (outcome.command_id, outcome.code) == (command_id, code):
                    return outcome
            await anyio.sleep(0.02)


async def send(redis: Redis, command_id: str, text: str) -> None:
    await redis.xadd(CONTROL, {"json": f'{{"commandId": "{command_id}", {text}}}'})


@contextmanager
def taking_over(terminal: Terminal, *words: str) -> Iterator[Process]:
    """Start a worker again and again, until the lease of the one before has lapsed."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with terminal.start(*words) as worker:
            while worker.popen.poll() is None:
                if "epoch " in worker.log.read_text():  # It trains, so it has the lease.
                    yield worker
                    return
                time.sleep(0.05)
            assert "run 'r' is held by" in worker.log.read_text()
    pytest.fail("the lease doesn't lapse")


@pytest.mark.slow
async def test_a_worker_that_wakes_after_another_has_its_run_answers_nothing_and_ends(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    terminal = Terminal(tmp_path)
    words = (*WORDS, "--redis", redis_url)
    with terminal.start(*words, "--run-dir", "here", "--summary", "here.json") as stale:
        await send(redis, "first", '"commandType": "PAUSE"')
        await answered(redis, "first")
        stale.signal(signal.SIGSTOP)
        # It waits for commands, so that the server hands this one over to it all the same.
        await send(redis, "second", '"commandType": "LEARNING_RATE", "learningRate": {"factor": 2}')
        # Another machine: the same run, on a copy of its folder.
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        with taking_over(terminal, *words, "--run-dir", "there") as newer:
            await answered(redis, "second")
            stale.signal(signal.SIGCONT)
            said = await anyio.to_thread.run_sync(lambda: stale.ends(1))
            await send(redis, "third", '"commandType": "STOP"')
            await answered(redis, "third")
            newer.ends(0)
    assert "the run was taken over: stopping" in said
    assert summary(tmp_path / "here.json")["stopped_by"] == "lease"
    outcomes = Counter(item.command_id for item in await messages(redis, OUTCOMES, CommandOutcome))
    assert outcomes == {"first": 1, "second": 1, "third": 1}
    assert await redis.xlen(CONTROL) == 0
    alerts = await messages(redis, EMERGENCY, TelemetryPacket)
    names = {event.event_id for packet in alerts for event in packet.events}
    assert names & {"lease_lost", "fenced"}


@pytest.mark.slow
def test_a_second_worker_of_a_folder_is_refused_though_the_first_stands_still(
    tmp_path: Path,
) -> None:
    terminal = Terminal(tmp_path)
    with terminal.start(*WORDS) as worker:
        worker.says("epoch ")
        worker.signal(signal.SIGSTOP)
        [line] = terminal.run(*WORDS, check=2).strip().splitlines()
        assert f"run folder {tmp_path / 'runs' / 'r'} is in use by process" in line
        assert str(worker.popen.pid) in line
