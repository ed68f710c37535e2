"""A server that stands still under a real worker."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.oona.faults.own_server import OwnServer
from tests.worker.processes import Process, Terminal, summary
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.streams import Streams

STREAMS = Streams()
PATIENCE = 180.0  # seconds: a machine may be very busy
WORDS = ("--run", "d", "--redis")


def epochs(worker: Process) -> list[int]:
    """Those that the worker has told of."""
    return [int(number) for number in re.findall(r"epoch (\d+)/", worker.log.read_text())]


async def newest(url: str, stream: str) -> int:
    """When the newest entry of a stream was taken, in milliseconds; 0: there is none."""
    async with connect(url, name="reader") as redis:
        found: Any = await redis.xrevrange(stream, count=1)
        return int(found[0][0].split(b"-")[0]) if found else 0


@pytest.mark.slow
@pytest.mark.usefixtures("state_home")
async def test_training_goes_on_while_the_server_stands_still(tmp_path: Path) -> None:
    server = OwnServer(tmp_path / "server")
    terminal = Terminal(tmp_path / "terminal")
    words = ("--epochs", "100000", "--summary", "summary.json")
    try:
        with terminal.start("run", "digits", *WORDS, server.url, *words) as worker:
            worker.says("accuracy")
            server.freeze()
            # By then a reply was waited for as long as that is done at all.
            worker.says("disconnected")
            before = epochs(worker)
            # Training goes on, and the one who watches it is told all the while.
            with anyio.fail_after(PATIENCE):
                while len(epochs(worker)) <= len(before) + 3:  # noqa: ASYNC110 - a file
                    await anyio.sleep(0.05)
            assert epochs(worker) == sorted(set(epochs(worker)))
            server.thaw()
            thawed = time.time() * 1000
            answer = terminal.run("send", "lr", "0.001", *WORDS, server.url)
            assert "applied" in answer.lower(), answer
            with anyio.fail_after(PATIENCE):
                while await newest(server.url, STREAMS.telemetry("d")) < thawed:  # noqa: ASYNC110
                    await anyio.sleep(0.1)
            worker.signal(signal.SIGTERM)
            text = worker.ends(0)
        assert "disconnected" in text
        assert "reconnected" in text
        assert summary(terminal.folder / "summary.json")["stopped_by"] == "signal"
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("state_home")
def test_a_stop_without_a_server_ends_well_and_says_what_is_left(tmp_path: Path) -> None:
    server = OwnServer(tmp_path / "server")
    terminal = Terminal(tmp_path / "terminal", {"TOLARIA_DRAIN_SECONDS": "6"})
    words = ("--epochs", "100000", "--summary", "summary.json")
    try:
        with terminal.start("run", "digits", *WORDS, server.url, *words) as worker:
            worker.says("accuracy")
            server.freeze()
            worker.says("disconnected")
            worker.signal(signal.SIGTERM)
            text = worker.ends(0)
        assert "what is in the spool goes out at the next start" in text
        assert "the lease was not given back" in text
        assert "in time" not in text
        assert summary(terminal.folder / "summary.json")["stopped_by"] == "signal"
    finally:
        server.stop()
