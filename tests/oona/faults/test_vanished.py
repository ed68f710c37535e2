"""What the server held goes away under a worker that is at work."""

from pathlib import Path

from tests.oona.bus import CONTROL, GROUP
from tests.oona.faults.own_server import OwnServer
from tests.oona.faults.scene import Mark
from tests.oona.faults.stage import acting

RECREATED = {"stream": CONTROL, "group": GROUP}


async def test_after_flushall_everything_goes_on(own: OwnServer, tmp_path: Path):
    async with acting(tmp_path, own.url) as scene:
        await scene.flows()
        await scene.operator.flushall()
        since = scene.mark()
        assert await scene.events.wait_for("group_recreated") == RECREATED
        await scene.closes(since)
        assert scene.events.names() == ["group_recreated"]


async def test_a_destroyed_group_is_made_again_and_misses_nothing(own: OwnServer, tmp_path: Path):
    async with acting(tmp_path, own.url) as scene:
        for _ in range(3):
            await scene.flows()
            await scene.operator.xgroup_destroy(CONTROL, GROUP)
        assert await scene.events.wait_for("group_recreated") == RECREATED
        await scene.closes()
        assert scene.events.names() == ["group_recreated"] * 3


async def test_a_deleted_stream_costs_what_was_in_it_and_no_more(own: OwnServer, tmp_path: Path):
    async with acting(tmp_path, own.url) as scene:
        await scene.flows()
        await scene.operator.delete(CONTROL)
        since = Mark(command=scene.sender.count)
        assert await scene.events.wait_for("group_recreated") == RECREATED
        await scene.closes(since)
        assert scene.events.names() == ["group_recreated"]
