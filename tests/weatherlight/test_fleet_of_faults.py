"""A fleet of real workers, each with a trouble of its own, under one real Weatherlight."""

from __future__ import annotations

import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import anyio
import pytest
from redis.asyncio import Redis

from tests.weatherlight.streams import alerts, noted, wait_for
from tests.worker.processes import Process, Terminal
from tolaria_bus.leyline import TelemetryLevel
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.embedded import EmbeddedServer
from tolaria_bus.safety import SignalView, WorkerState

JOBS = """
import ctypes
import threading
import time
from pathlib import Path
import torch
from tiny import Tiny
from torch.utils.data import Dataset
from tolaria_bus.safety import SignalView, WorkerState
from tolaria_bus.tolaria.control import deadlines

deadlines.FULL_SECONDS = 0.5  # A rollback has 12 s otherwise: nobody should wait for that here.
ENDLESS = 1_000_000


class Steady(Tiny):
    epochs = ENDLESS

    def loss(self, model, batch):
        # Two endless runs aren't to take the machine from the others.
        time.sleep(0.005)
        return super().loss(model, batch)


class Stuck(Tiny):
    epochs, steps = 6, 0

    def loss(self, model, batch):
        self.steps += 1
        if self.steps == 60 and not Path("was_stuck").exists():
            Path("was_stuck").touch()
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        return super().loss(model, batch)


class Grip(Tiny):
    epochs = ENDLESS

    def loss(self, model, batch):
        with SignalView(Path("runs/grip")) as view:
            view.refresh()
            # One that hasn't said yet that it works has as long as a start may take. The event loop
            # went round before the last step: so it is what hangs for longer.
            works = view.state is WorkerState.RUNNING and view.step >= 20
            if works and view.beat_ns < view.progress_ns:
                # Foreign code that keeps the interpreter's lock: no other thread of Python's runs.
                ctypes.PyDLL(None).sleep(3600)
        return super().loss(model, batch)


class Rolls(Tiny):
    # Hangs for good in the steps that a rollback runs again.
    epochs = ENDLESS

    def loss(self, model, batch):
        with SignalView(Path("runs/rolls")) as view:
            view.refresh()
            if view.deadlines():
                ctypes.PyDLL(None).sleep(3600)
        return super().loss(model, batch)


class Slowly(Dataset):
    # Its storage goes away in the middle of the second epoch, once.
    def __init__(self, data):
        self.data, self.reads = data, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.reads += 1
        if self.reads == 1000 and not Path("was_away").exists():
            Path("was_away").touch()
            threading.Event().wait()
        return self.data[index]


class Loads(Tiny):
    epochs = 4

    def train_data(self):
        return Slowly(super().train_data())


class Greedy(Tiny):
    epochs, steps = 4, 0

    def loss(self, model, batch):
        self.steps += 1
        if self.steps == 70 and not Path("was_greedy").exists():
            Path("was_greedy").touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().loss(model, batch)


class Bad(Tiny):
    def loss(self, model, batch):
        raise ValueError("this loss never works")
"""
FLEET = """
[settings]
hang_seconds = 6
restart_seconds = 0.1
# An endless run learns its few samples by heart; then the next odd batch looks like a spike.
loss_spike_factor = 1000000
accuracy_collapse_factor = 0
threads = 1

[[worker]]
job = "faulty.py:Steady"
run = "steady"

[[worker]]
job = "faulty.py:Steady"
run = "frozen"
settings = { restart_limit = 0 }

[[worker]]
job = "faulty.py:Stuck"
run = "stuck"

[[worker]]
job = "faulty.py:Loads"
run = "loads"

[[worker]]
job = "faulty.py:Greedy"
run = "greedy"

[[worker]]
job = "faulty.py:Grip"
run = "grip"
settings = { restart_limit = 0 }

[[worker]]
job = "faulty.py:Rolls"
run = "rolls"

[worker.settings]
restart_limit = 0
snapshot_every_steps = 7
snapshot_keep = 1
snapshot_at_epochs = false

[[worker]]
job = "faulty.py:Bad"
run = "bad"
settings = { restart_limit = 0 }
"""


@dataclass
class Fleet:
    """What is there to look at.

    Attributes:
        terminal: Where it was started.
        url: Its server's.
        process: Weatherlight.
        stopped: The number of a process of ``frozen`` that was stopped at work.
        killed: The number of a process of ``steady`` that was killed at work.
    """

    terminal: Terminal
    url: str
    process: Process
    stopped: int
    killed: int

    def view(self, run: str) -> SignalView:
        view = SignalView(self.terminal.folder / "runs" / run)
        view.refresh()
        return view

    def get(self, page: str) -> tuple[int, str]:
        found = re.search(r"http://127\.0\.0\.1:\d+", self.process.log.read_text())
        assert found is not None
        try:
            with urllib.request.urlopen(f"{found[0]}/{page}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    async def at_work(self, run: str, *, after: int = 0) -> int:
        """Wait until a process of a run later than ``after`` makes steps; its number."""

        async def look() -> int:
            with self.view(run) as view:
                identity = view.identity
                works = view.state is WorkerState.RUNNING and view.made_a_step
                there = identity is not None and identity.pid != after and identity.lives()
                return identity.pid if works and there and identity is not None else 0

        return int(await wait_for(look))

    async def strike(self) -> None:
        """Stop a process of ``frozen`` and kill one of ``steady``, as soon as they work.

        What they come to is awaited beside what the others come to by themselves.
        """
        self.stopped = await self.at_work("frozen")
        os.kill(self.stopped, signal.SIGSTOP)
        self.killed = await self.at_work("steady")
        os.kill(self.killed, signal.SIGKILL)
        await self.at_work("steady", after=self.killed)
        words = ("send", "pause", "--run", "steady", "--redis", self.url, "--wait", "120")
        await anyio.to_thread.run_sync(lambda: self.terminal.run(*words))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, state_home: None) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    terminal = Terminal(folder, forked_workers=True)
    (folder / "faulty.py").write_text(JOBS)
    (folder / "fleet.toml").write_text(FLEET)
    with EmbeddedServer.start(folder / "server", "fleet") as server:
        words = ("--fleet", "fleet.toml", "--redis", server.url, "--port", "0")
        full = ("--set", "disk_alert=0.000001")
        # To a state that isn't in memory any more: from the checkpoint before it, over its steps.
        rollback = ("rollback", "--to-step", "57", "--at-step", "130", "--wait", "0")
        terminal.run("send", *rollback, "--run", "rolls", "--redis", server.url)
        with terminal.start("weatherlight", *words, *full) as process:
            process.says("/metrics")
            fleet = Fleet(terminal, server.url, process, stopped=0, killed=0)
            anyio.run(fleet.strike)
            yield fleet
            process.signal(signal.SIGTERM)
            # One of them was given up.
            process.ends(1)


@pytest.fixture
async def stream(fleet: Fleet) -> AsyncIterator[Redis]:
    async with connect(fleet.url, name="tests") as client:
        yield client


@pytest.mark.slow
async def test_a_deadlock_in_the_users_loss_is_found_shown_and_got_over(
    fleet: Fleet, stream: Redis
) -> None:
    (hung,) = await wait_for(lambda: alerts(stream, "stuck", "worker_hung"))
    assert hung.level == TelemetryLevel.TELEMETRY_LEVEL_CRITICAL
    assert hung.attributes["cause"] == "training"
    # The line of the user's file that hangs is in the alert itself.
    assert re.search(r'faulty\.py", line \d+ in loss', hung.attributes["stack"])
    stacks = (fleet.terminal.folder / hung.attributes["stacks"]).read_text()
    assert stacks.count("most recent call first") > 1
    assert await wait_for(lambda: noted(stream, "stuck", "worker_finished"))
    with fleet.view("stuck") as view:
        assert (view.state, view.step) == (WorkerState.FINISHED, 300)


@pytest.mark.slow
async def test_a_loader_that_hangs_is_found_shown_and_got_over(fleet: Fleet, stream: Redis) -> None:
    (hung,) = await wait_for(lambda: alerts(stream, "loads", "worker_hung"))
    assert hung.attributes["cause"] == "training"
    assert re.search(r'faulty\.py", line \d+ in __getitem__', hung.attributes["stack"])
    assert await wait_for(lambda: noted(stream, "loads", "worker_finished"))
    with fleet.view("loads") as view:
        assert (view.state, view.step) == (WorkerState.FINISHED, 200)


@pytest.mark.slow
async def test_a_worker_without_memory_says_so_and_goes_on_from_where_it_was(
    fleet: Fleet, stream: Redis
) -> None:
    (failed,) = await wait_for(lambda: alerts(stream, "greedy", "training_failed"))
    assert "out of memory" in failed.description
    (died,) = await wait_for(lambda: alerts(stream, "greedy", "worker_died"))
    assert died.attributes["how"] == "exit code 2"
    assert await wait_for(lambda: noted(stream, "greedy", "worker_finished"))
    with fleet.view("greedy") as view:
        assert (view.state, view.step) == (WorkerState.FINISHED, 200)


@pytest.mark.slow
async def test_a_worker_whose_interpreter_is_locked_is_found_and_shown_too(
    fleet: Fleet, stream: Redis
) -> None:
    (hung,) = await wait_for(lambda: alerts(stream, "grip", "worker_hung"))
    assert hung.attributes["cause"] == "event loop"
    assert re.search(r'faulty\.py", line \d+ in loss', hung.attributes["stack"])


@pytest.mark.slow
async def test_a_rollback_that_hangs_is_told_by_the_supervisor_on_both_streams(
    fleet: Fleet, stream: Redis
) -> None:
    (overrun,) = await wait_for(lambda: alerts(stream, "rolls", "deadline_overrun"))
    assert overrun.level == TelemetryLevel.TELEMETRY_LEVEL_CRITICAL
    assert overrun.attributes["deadline"] == "rollback"
    (started,) = await noted(stream, "rolls", "worker_started")
    assert overrun.attributes["pid"] == started.attributes["pid"]
    (also,) = await wait_for(lambda: noted(stream, "rolls", "deadline_overrun"))
    assert also.attributes == overrun.attributes


@pytest.mark.slow
async def test_a_loss_that_never_works_is_given_up_with_its_reason(
    fleet: Fleet, stream: Redis
) -> None:
    (given_up,) = await wait_for(lambda: alerts(stream, "bad", "worker_given_up"))
    assert given_up.level == TelemetryLevel.TELEMETRY_LEVEL_CRITICAL
    assert "this loss never works" in given_up.description
    assert given_up.attributes["how"] == "exit code 2"
    assert fleet.get("healthz") == (200, "ok\n")
    code, said = fleet.get("readyz")
    assert code == 503
    assert "bad given up" in said
    _, page = fleet.get("metrics")
    assert 'weatherlight_worker_given_up{run="bad"} 1.0' in page


@pytest.mark.slow
async def test_a_stopped_process_is_told_and_then_ended(fleet: Fleet, stream: Redis) -> None:
    (frozen,) = await wait_for(lambda: alerts(stream, "frozen", "worker_frozen"))
    assert frozen.attributes["pid"] == str(fleet.stopped)
    (hung,) = await wait_for(lambda: alerts(stream, "frozen", "worker_hung"))
    assert hung.attributes["cause"] == "frozen"
    assert await wait_for(lambda: alerts(stream, "frozen", "worker_given_up"))
    with fleet.view("frozen") as view:
        identity = view.identity
        assert identity is not None
        assert not identity.lives()


@pytest.mark.slow
async def test_a_killed_worker_goes_on_and_a_paused_one_is_left_alone(
    fleet: Fleet, stream: Redis
) -> None:
    (died,) = await wait_for(lambda: alerts(stream, "steady", "worker_died"))
    assert died.attributes["how"] == "SIGKILL"
    assert died.attributes["pid"] == str(fleet.killed)

    async def quiet() -> bool:
        _, page = fleet.get("metrics")
        paused = 'weatherlight_worker_state{run="steady",state="paused"} 1.0' in page
        with fleet.view("steady") as view:
            # Longer than makes a worker hang that isn't paused.
            return paused and view.beat_ns - view.progress_ns > 8 * 10**9

    assert await wait_for(quiet)
    assert await alerts(stream, "steady", "worker_hung") == []
    with fleet.view("steady") as view:
        identity = view.identity
        assert identity is not None
        assert identity.lives()


@pytest.mark.slow
async def test_a_disk_that_fills_up_is_told_while_there_is_room(
    fleet: Fleet, stream: Redis
) -> None:
    (low,) = await wait_for(lambda: alerts(stream, "", "disk_low"))
    assert "GiB left" in low.description
    _, page = fleet.get("metrics")
    assert 'weatherlight_used_ratio{kind="disk"' in page
    assert 'weatherlight_used_ratio{kind="memory"' in page
