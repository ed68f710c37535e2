"""A HALT with the server gone: through shared memory to the sibling, and to readers later, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.oona.faults.own_server import OwnServer
from tests.weatherlight.streams import STREAMS, messages, signals, wait_for
from tests.worker.processes import Terminal
from tolaria_bus.leyline import AdaptationCommand, CommandOutcome, CommandStatus, EmergencySignal
from tolaria_bus.oona.connection import connect
from tolaria_bus.safety import SignalView, WorkerState
from tolaria_bus.tolaria.recovery.journal import read_records

JOBS = """
import time
from pathlib import Path
from tiny import Tiny


class Steady(Tiny):
    epochs = 1_000_000

    def loss(self, model, batch):
        time.sleep(0.005)
        return super().loss(model, batch)


class Waits(Steady):
    # The command for a later step is with it by then.
    steps = 0

    def loss(self, model, batch):
        self.steps += 1
        while self.steps == 60 and not Path("go").exists():
            time.sleep(0.01)
        return super().loss(model, batch)
"""
FLEET = """
[settings]
hang_seconds = 600
lease_seconds = 3600
restart_seconds = 0.1
loss_spike_factor = 1000000
accuracy_collapse_factor = 0
threads = 1

[[worker]]
job = "endless.py:Waits"
run = "cause"

[[worker]]
job = "endless.py:Steady"
run = "sibling-1"
"""
FIRE = """{"commandId": "fire", "commandType": "EMERGENCY", "annotations": {"at_step": "100",
    "reason": "smoke"}, "emergency": {"level": "HALT", "scope": "pattern", "runs": "sibling-*"}}"""
ID = "cause/fire"


async def becomes(view: SignalView, state: WorkerState, *, after: int = 0) -> int:
    """Wait until a process later than ``after`` is in a state; its number."""

    async def look() -> int:
        view.refresh()
        identity = view.identity
        there = identity is not None and identity.pid != after and identity.lives()
        return identity.pid if there and identity is not None and view.state is state else 0

    return int(await wait_for(look))


async def statuses(redis: Redis, run: str, command_id: str) -> list[int]:
    found = await messages(redis, STREAMS.outcomes(run))
    assert all(isinstance(message, CommandOutcome) for message in found)
    return [
        message.status
        for message in found
        if isinstance(message, CommandOutcome) and message.command_id == command_id
    ]


def obeyed(folder: Path) -> list[str]:
    """Ids of the emergencies that a run's journal has, each as often as it was begun."""
    commands = [
        AdaptationCommand.FromString(record.intent.command)
        for record in read_records(folder)
        if record.HasField("intent")
    ]
    return [command.command_id for command in commands if command.HasField("emergency")]


def heard(folder: Path, command_id: str) -> Callable[[], Awaitable[bool]]:
    """Has a run's journal an emergency?"""

    async def look() -> bool:
        return command_id in obeyed(folder)

    return look


@pytest.mark.slow
@pytest.mark.usefixtures("state_home")
async def test_a_halt_without_a_server_is_obeyed_beside_it_and_delivered_once_later(
    tmp_path: Path,
) -> None:
    server, terminal = OwnServer(tmp_path / "server"), Terminal(tmp_path / "t")
    (terminal.folder / "endless.py").write_text(JOBS)
    (terminal.folder / "fleet.toml").write_text(FLEET)
    where = ("--redis", server.url)
    terminal.run("send", "--json", FIRE, "--wait", "0", "--run", "cause", *where)
    runs = terminal.folder / "runs"
    try:
        with (
            terminal.start("weatherlight", "--fleet", "fleet.toml", *where) as process,
            SignalView(runs / "cause") as cause,
            SignalView(runs / "sibling-1") as sibling,
        ):
            async with connect(server.url, name="tests") as redis:
                await wait_for(lambda: statuses(redis, "cause", "fire"))
                await becomes(sibling, WorkerState.RUNNING)
            server.kill()
            folder = ("--run-dir", str(runs / "sibling-1"))
            word = ("send", "emergency", "elevated", *folder, "--redis", server.url, "--id", "w1")
            assert "LEFT emergency ELEVATED" in terminal.run(*word, "--reason", "a word")
            await wait_for(heard(runs / "sibling-1", "signal:w1"))
            (terminal.folder / "go").touch()
            await becomes(cause, WorkerState.HALTED)
            before = await becomes(sibling, WorkerState.HALTED)
            assert obeyed(runs / "sibling-1") == ["signal:w1", f"signal:{ID}"]
            word = ("send", "emergency", "halt", *folder, "--redis", server.url, "--wait", "60")
            assert "HALTED at step" in terminal.run(*word, "--id", "w2", "--reason", "once more")
            # What it has obeyed survives it, and holds it again.
            os.kill(before, signal.SIGKILL)
            server.start()
            await becomes(sibling, WorkerState.HALTED, after=before)
            async with connect(server.url, name="tests") as redis:
                duplicate = CommandStatus.COMMAND_STATUS_DUPLICATE

                async def came_again() -> bool:
                    return duplicate in await statuses(redis, "sibling-1", f"signal:{ID}")

                # It came by the bus as well by now, and was obeyed no second time.
                await wait_for(came_again)
                sent: list[EmergencySignal] = await signals(redis)
                assert [item.attributes["signal_id"] for item in sent].count(ID) == 1
            assert obeyed(runs / "sibling-1") == ["signal:w1", f"signal:{ID}", "signal:w2"]
            for run, view in (("sibling-1", sibling), ("cause", cause)):
                terminal.run("send", "resume", "--run", run, "--wait", "120", *where, timeout=200)
                await becomes(view, WorkerState.RUNNING)
            process.signal(signal.SIGTERM)
            process.ends(0)
    finally:
        server.stop()
