"""The server keeps its connections and says nothing, for many times as long as one waits for it."""

from datetime import timedelta
from pathlib import Path
from typing import Final

import anyio
import pytest

from tests.oona.faults.own_server import OwnServer
from tests.oona.faults.scene import PUBLISHING, READING, Scene
from tests.oona.faults.stage import acting

REPLY: Final = timedelta(seconds=1)
SILENCE: Final = 7 * REPLY.total_seconds()
"""As half a minute is to the five seconds that a worker waits for a reply."""


@pytest.mark.slow
async def test_a_silence_of_many_time_limits_costs_nothing(own: OwnServer, tmp_path: Path):
    """``CLIENT PAUSE`` on one server, a stopped process on another, at the same time."""
    other = OwnServer(tmp_path / "other")
    try:
        async with (
            acting(tmp_path / "paused", own.url, reply=REPLY) as paused,
            acting(tmp_path / "stopped", other.url, reply=REPLY) as stopped,
        ):
            await paused.flows()
            await stopped.flows()
            await paused.operator.client_pause(int(SILENCE * 1000), all=True)
            other.freeze()
            # One of the servers says nothing before this was waited for, however long it takes.
            for scene in (paused, stopped):
                await scene.held()
            await anyio.sleep(SILENCE)
            other.thaw()
            for scene in (paused, stopped):
                await ends_well(scene)
    finally:
        other.stop()


async def ends_well(scene: Scene) -> None:
    await scene.told("disconnected", READING, *PUBLISHING)
    await scene.told("reconnected", READING, *PUBLISHING)
    await scene.closes()
    errors = {told["error"] for told in scene.events.of("disconnected")}
    assert all("Timeout" in error for error in errors), errors
