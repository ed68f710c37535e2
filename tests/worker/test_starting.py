"""A run that is only starting: found, meant by broadcasts, and no run if it never begins."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.oona.bus import RUN, SOON, STREAMS, UNSIGNED, until
from tests.recovery.records import started
from tests.worker.processes import Terminal
from tests.worker.test_drain import bus
from tolaria_bus.cli.broadcast import signal_of
from tolaria_bus.cli.options import Sending
from tolaria_bus.cli.who import live_runs
from tolaria_bus.leyline import AdaptationCommand, CommandEmergency, CommandType, EmergencyLevel
from tolaria_bus.oona.directory import runs
from tolaria_bus.oona.sealing import seal
from tolaria_bus.settings import load
from tolaria_bus.tolaria.control.mailbox import Mailbox
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.worker.bus import Bus
from tolaria_bus.worker.holding import RunKnown

FAILING = """
from tiny import Tiny


class Failing(Tiny):
    def model(self):
        raise RuntimeError("no model today")
"""


async def test_a_broadcast_reaches_a_run_that_has_its_lease_and_has_not_begun(
    redis: Redis, redis_url: str, tmp_path: Path
):
    mailbox = Mailbox()
    async with bus(redis_url, tmp_path, mailbox) as made:
        # No beat yet: there is no trainer.
        assert await live_runs(redis, STREAMS) == [RUN]
        assert (await runs(redis, STREAMS))[RUN]["mode"] == "starting"
        halt = AdaptationCommand(
            command_type=CommandType.COMMAND_EMERGENCY,
            emergency=CommandEmergency(
                level=EmergencyLevel.EMERGENCY_LEVEL_HALT, scope="pattern", runs="*"
            ),
        )
        signal = signal_of(halt, Sending(command_id="s", reason="smoke"), "operator/x")
        fields: Any = seal(signal, stream=STREAMS.emergency, source="operator/x", ring=UNSIGNED)
        await redis.xadd(STREAMS.emergency, fields)
        await until(lambda: mailbox.waiting)
        assert [item.command.command_id for item in mailbox.take()] == ["signal:s"]
        await made.drain(timedelta(seconds=SOON))


async def test_a_run_that_died_before_it_began_may_begin_and_one_that_had_begun_may_not(
    redis: Redis, redis_url: str, tmp_path: Path
):
    settings, _ = load()
    for begins in (False, True):
        folder = RunFolder.open(tmp_path / str(begins))
        try:
            # Left without a drain, as by kill -9.
            async with Bus(redis_url, RUN, folder, settings, UNSIGNED, Mailbox()):
                assert (await runs(redis, STREAMS))[RUN]["mode"] == "starting"
                if begins:
                    folder.write(started())
                    await redis.hset(STREAMS.runs, RUN, '{"mode": "running"}')
        finally:
            folder.close()
        await redis.delete(STREAMS.lease(RUN))
    folder = RunFolder.open(tmp_path / "empty")
    try:
        with pytest.raises(RunKnown):
            async with Bus(redis_url, RUN, folder, settings, UNSIGNED, Mailbox()):
                pytest.fail("it began anew")
    finally:
        folder.close()


@pytest.mark.slow
async def test_a_run_whose_job_fails_before_it_begins_is_not_left_among_the_runs(
    redis: Redis, redis_url: str, tmp_path: Path
):
    terminal = Terminal(tmp_path)
    (tmp_path / "failing.py").write_text(FAILING)
    said = terminal.run("run", "failing.py:Failing", "--run", "r", "--redis", redis_url, check=None)
    assert "no model today" in said
    assert await runs(redis, STREAMS) == {}
    # Mended, it begins: nobody asks for --new.
    terminal.run("run", "tiny.py:Tiny", "--run", "r", "--steps", "3", "--redis", redis_url)
