"""What a worker's bus tells as an so that somebody sees it."""

from __future__ import annotations

from pathlib import Path

import anyio
from redis.asyncio import Redis

from tests.oona.bus import EMERGENCY, RUN, SOON, STREAMS, messages, outcome
from tests.worker.test_drain import bus
from tolaria_bus.oona.lease import fence_key
from tolaria_bus.oona.spool import Spool
from tolaria_bus.tolaria.control.mailbox import Mailbox
from tolaria_bus.worker.telling import LOUD


async def told(redis: Redis) -> str:
    """The name of the next alert that there is."""
    with anyio.fail_after(SOON):
        while not (found := await messages(redis, EMERGENCY)):  # noqa: ASYNC110
            await anyio.sleep(0.01)
    return str(found[0].events[0].event_id)


async def test_records_of_the_spool_that_nobody_can_read_are_an_alert(
    redis: Redis, redis_url: str, tmp_path: Path
):
    async with bus(redis_url, tmp_path, Mailbox()):
        pass
    with Spool(tmp_path / "spool") as spool:
        spool.append(b"\xff\xff\xff")
    async with bus(redis_url, tmp_path, Mailbox()):
        assert await told(redis) == "unreadable"


async def test_outcomes_that_are_refused_because_another_has_the_run_are_an_alert(
    redis: Redis, redis_url: str, tmp_path: Path
):
    async with bus(redis_url, tmp_path, Mailbox()) as made:
        await redis.hset(fence_key(STREAMS, RUN), mapping={"token": 9, "holder": "newer"})
        made.outbound.outcome(outcome("c"), None)
        assert await told(redis) == "fenced"


def test_a_packet_that_can_never_be_sent_is_an_alert():
    assert "unsendable" in LOUD
