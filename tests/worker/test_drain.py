"""A worker's bus that is told more than it has to obey, and how it stops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.oona.bus import EMERGENCY, RUN, SOON, UNSIGNED, alert, until
from tests.oona.faults.own_server import OwnServer
from tests.recovery.records import started
from tolaria_bus.leyline import EmergencyLevel, EmergencySignal
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.settings import load
from tolaria_bus.tolaria.control.mailbox import Mailbox
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.worker.bus import Bus

GROUP = f"tolaria.{RUN}"
MANY = 1000


@asynccontextmanager
async def bus(
    url: str, path: Path, mailbox: Mailbox, ring: KeyRing = UNSIGNED
) -> AsyncIterator[Bus]:
    """The bus side of a worker; it isn't drained at the end."""
    folder = RunFolder.open(path)
    settings, _ = load()
    try:
        async with Bus(url, RUN, folder, settings, ring, mailbox) as made:
            folder.write(started())
            yield made
    finally:
        folder.journal.close()


async def shout(redis: Redis, *last: EmergencySignal) -> None:
    """Very many alerts of others at once, then signals."""
    pipe = redis.pipeline(transaction=False)
    for message in (*(alert("a", step) for step in range(MANY)), *last):
        fields: Any = seal(message, stream=EMERGENCY, source="another", ring=UNSIGNED)
        pipe.xadd(EMERGENCY, fields)
    await pipe.execute()


async def acknowledgements(redis: Redis) -> int:
    """How often the server was told of finished entries."""
    return int((await redis.info("commandstats"))["cmdstat_xack"]["calls"])


async def read(redis: Redis) -> int:
    """How many alerts the worker has got."""
    (group,) = await redis.xinfo_groups(EMERGENCY)
    return int(group["entries-read"] or 0)


async def test_a_signal_behind_many_alerts_waits_for_none_of_their_acknowledgements(
    redis: Redis, redis_url: str, tmp_path: Path
):
    await redis.config_resetstat()
    mailbox = Mailbox()
    halt = EmergencySignal(level=EmergencyLevel.EMERGENCY_LEVEL_HALT)
    halt.attributes.update(scope="all", signal_id="s")
    async with bus(redis_url, tmp_path, mailbox) as made:
        await shout(redis, halt)
        await until(lambda: mailbox.waiting)
        (delivery,) = mailbox.take()
        assert delivery.command.command_id == "signal:s"
        with anyio.fail_after(SOON):
            while (await redis.xpending(EMERGENCY, GROUP))["pending"] != 1:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert await acknowledgements(redis) < MANY / 2
        await made.drain(timedelta(seconds=SOON))


@pytest.mark.usefixtures("state_home")
async def test_a_drain_ends_also_where_the_server_dies_among_alerts(tmp_path: Path):
    server = OwnServer(tmp_path / "server")
    try:
        async with (
            connect(server.url, name="test") as redis,
            bus(server.url, tmp_path / "run", Mailbox()) as made,
        ):
            await shout(redis)
            with anyio.fail_after(SOON):
                while not await read(redis):
                    await anyio.lowlevel.checkpoint()
            server.kill()
            with anyio.fail_after(2 * SOON):
                await made.drain(timedelta(seconds=1))
    finally:
        server.start()
        server.stop()
