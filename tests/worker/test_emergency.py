"""An operator's HALT, against real workers: those that are meant stop, until RESUME."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from tests.weatherlight.streams import STREAMS, wait_for
from tests.worker.processes import Terminal

JOB = """
import time
from tiny import Tiny


class Steady(Tiny):
    epochs = 1_000_000

    def loss(self, model, batch):
        time.sleep(0.005)
        return super().loss(model, batch)
"""


async def status(redis: Redis, run: str, mode: str, *, after: int = 0) -> dict[str, Any]:
    """What a run says of itself, once a process later than ``after`` is in a mode."""

    async def look() -> dict[str, Any]:
        found: Any = await redis.get(STREAMS.status(run))
        said: dict[str, Any] = orjson.loads(found) if found else {}
        return said if said.get("mode") == mode and said["pid"] != after else {}

    return dict(await wait_for(look))


@pytest.mark.slow
async def test_a_halt_for_a_pattern_stops_those_that_match_over_a_kill_until_resume(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    terminal = Terminal(tmp_path)
    (tmp_path / "steady.py").write_text(JOB)
    where = ("--redis", redis_url)

    def words(run: str) -> tuple[str, ...]:
        return ("run", "steady.py:Steady", "--run", run, "--set", "threads=1",
                "--set", "loss_spike_factor=1000000", *where)  # fmt: skip

    halt = ("send", "emergency", "halt", "--scope", "pattern", "--wait", "120", *where)
    with terminal.start(*words("exp-1")) as meant, terminal.start(*words("other")) as other:
        for run in ("exp-1", "other"):
            await status(redis, run, "running")
        missed = terminal.run(*halt, "--runs", "exq-*", "--reason", "drill", check=2)
        assert "exq-*" in missed
        assert "exp-1, other" in missed
        assert "--reason" in terminal.run(*halt, "--runs", "exp-*", check=2)
        said = terminal.run(
            *halt, "--runs", "exp-*", "--reason", "drill", "--id", "d1", timeout=200
        )
        assert "APPLIED emergency" in said
        halted = await status(redis, "exp-1", "halted")
        assert halted["emergency"]["level"] == "halt"
        assert halted["emergency"]["reason"] == "drill"
        assert halted["emergency"]["by"].startswith("operator/")
        shown = terminal.run("tail", "--emergency", "--since", "0", "--no-follow", *where)
        assert "HALT drill scope pattern exp-* from operator/" in shown
        assert "halted: halted at step" in shown
        os.killpg(meant.popen.pid, signal.SIGKILL)
        meant.ends(-signal.SIGKILL)
        with terminal.start(*words("exp-1")) as again:
            still = await status(redis, "exp-1", "halted", after=halted["pid"])
            assert (still["step"], still["emergency"]) == (halted["step"], halted["emergency"])
            # The same signal in another entry is the same signal.
            once = terminal.run(*halt, "--runs", "exp-*", "--reason", "x", "--id", "d1",
                                check=3, timeout=200)  # fmt: skip
            assert "REJECTED" in once
            terminal.run("send", "resume", "--run", "exp-1", "--wait", "120", *where, timeout=200)
            freed = await status(redis, "exp-1", "conservative")
            assert freed["emergency"]["level"] == "conservative"
            assert (await status(redis, "other", "running"))["emergency"] is None
            for process in (again, other):
                process.signal(signal.SIGTERM)
            for process in (again, other):
                process.ends(0)
