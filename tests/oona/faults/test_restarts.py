"""The server dies and comes back, with its data and without."""

from pathlib import Path

from tests.oona.faults.own_server import OwnServer
from tests.oona.faults.scene import PUBLISHING, READING
from tests.oona.faults.stage import acting


async def test_a_killed_server_costs_nothing(own: OwnServer, tmp_path: Path):
    async with acting(tmp_path, own.url) as scene:
        for _ in range(2):
            await scene.flows()
            own.kill()
            await scene.told("disconnected", READING, *PUBLISHING)
            await scene.held()
            own.start()
            await scene.told("reconnected", READING, *PUBLISHING)
        await scene.closes()


async def test_a_server_that_comes_back_empty_gets_all_that_it_had_not_confirmed(
    own: OwnServer, tmp_path: Path
):
    async with acting(tmp_path, own.url) as scene:
        await scene.flows()
        own.kill()
        await scene.told("disconnected", READING, *PUBLISHING)
        since = scene.unconfirmed()
        await scene.held()
        own.wipe()
        own.start()
        await scene.told("reconnected", READING, *PUBLISHING)
        await scene.closes(since)
        assert len(scene.events.of("group_recreated")) == 1
