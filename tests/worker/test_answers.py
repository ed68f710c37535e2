"""An entry that is delivered once more is answered from the journal."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.oona.bus import CONTROL, OUTCOMES, messages
from tests.worker.processes import Terminal
from tests.worker.test_takeover import answered, send
from tolaria_bus.leyline import CommandOutcome, CommandStatus
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.tolaria.recovery.journal import read_records


def effects(folder: Path) -> list[str]:
    return [item.intent.command_id for item in read_records(folder) if item.HasField("intent")]


@pytest.mark.slow
async def test_an_entry_that_comes_back_with_the_servers_past_gets_its_own_answer_again(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    terminal = Terminal(tmp_path)
    words = ("run", "tiny.py:Tiny", "--run", "r", "--epochs", "4000", "--redis", redis_url)
    with terminal.start(*words) as worker:
        await send(redis, "lr", '"commandType": "LEARNING_RATE", "learningRate": {"factor": 0.5}')
        first = await answered(redis, "lr")
        os.killpg(worker.popen.pid, signal.SIGKILL)
        worker.popen.wait()
    # A server that has come back without its last writes: the entry is there, its outcome isn't.
    await redis.flushall()
    fields: Any = {"json": '{"commandId": "lr", "commandType": "LEARNING_RATE", '
                   '"learningRate": {"factor": 0.5}}'}  # fmt: skip
    await redis.xadd(CONTROL, fields, id=first.entry_id)
    with terminal.start(*words) as worker:
        again = await answered(redis, "lr")
        await send(redis, "lr", '"commandType": "LEARNING_RATE", "learningRate": {"factor": 0.5}')
        await answered(redis, "lr", "duplicate")  # A stop would overtake it.
        await send(redis, "end", '"commandType": "STOP"')
        await answered(redis, "end")
        worker.ends(0)
    assert (again.step, again.code, again.entry_id) == (first.step, "ok", first.entry_id)
    found = await messages(redis, OUTCOMES, CommandOutcome)
    told = [short_name(CommandStatus, item.status) for item in found if item.command_id == "lr"]
    assert told == ["APPLIED", "DUPLICATE"]
    assert await redis.xlen(CONTROL) == 0
    assert effects(tmp_path / "runs" / "r") == ["lr", "end"]
