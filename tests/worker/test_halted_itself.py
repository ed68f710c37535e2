"""A run that has halted itself, and RESUMEs that were sent before and after."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.oona.bus import CONTROL
from tests.worker.processes import Terminal
from tests.worker.test_emergency import status
from tests.worker.test_takeover import answered, send
from tolaria_bus.tolaria.recovery.journal import read_records
from tolaria_bus.tolaria.recovery.ledger import HALTED_AT, order

JOB = """
from tiny import Tiny


class Spoiled(Tiny):
    epochs = 1_000_000
    calls = 0

    def loss(self, model, batch):
        self.calls += model.training
        spoil = float("nan") if self.calls == 40 else 1.0
        return super().loss(model, batch) * spoil
"""


def halted_at(folder: Path) -> tuple[int, int]:
    """When the run halted itself, by the server's clock."""
    decisions = [item.decision for item in read_records(folder) if item.HasField("decision")]
    (at,) = [decision.values[HALTED_AT] for decision in decisions if decision.kind == "halt"]
    return order(at)


@pytest.mark.slow
async def test_a_resume_sent_before_a_run_halted_itself_leaves_it_halted_and_a_later_one_frees_it(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    terminal = Terminal(tmp_path)
    (tmp_path / "spoiled.py").write_text(JOB)
    words = ("run", "spoiled.py:Spoiled", "--run", "r", "--set", "rollback_limit=1",
             "--set", "loss_spike_factor=1000000", "--redis", redis_url)  # fmt: skip
    began = time.time()
    with terminal.start(*words) as worker:
        halted = await status(redis, "r", "halted")
        assert halted["emergency"]["cause"] == "rollback_failed"
        milliseconds, _ = halted_at(tmp_path / "runs" / "r")
        seconds, _ = await redis.time()
        assert began - 1 <= milliseconds / 1e3 <= seconds + 1
        # As if it had been on its way for a second when the run halted itself.
        early: Any = {"json": '{"commandId": "early", "commandType": "RESUME"}'}
        await redis.xadd(CONTROL, early, id=f"{milliseconds - 1000}-0")
        refused = await answered(redis, "early", "superseded")
        assert "before the run halted itself" in refused.reason
        assert (await status(redis, "r", "halted"))["step"] == halted["step"]
        await send(redis, "late", '"commandType": "RESUME"')
        assert (await answered(redis, "late")).details["mode"] == "conservative"
        await send(redis, "end", '"commandType": "STOP"')
        await answered(redis, "end")
        worker.ends(0)
