"""The user that the docs describe may do all that the bus needs, and nothing else."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    GROUP,
    HIGH,
    NORMAL,
    OUTCOMES,
    STREAMS,
    TELEMETRY,
    Events,
    Inbox,
    alert,
    command,
    consuming,
    drained,
    finished,
    letters,
    metric,
    new_outbox,
    outcome,
    publishing,
    send,
)
from tests.oona.topologies.places import Failover
from tolaria_bus.cli.follow import Follower, last_ids
from tolaria_bus.leyline import Settlement
from tolaria_bus.oona.connection import ServerClock, ServerUnreachable, check, connect, servers
from tolaria_bus.oona.copies import Copies
from tolaria_bus.oona.directory import beat, runs, write_status
from tolaria_bus.oona.lease import Lease

DOCS = Path(__file__).parents[3] / "docs" / "topologies.md"


def of_the_docs(user: str) -> list[str]:
    """What is behind ACL SETUSER."""
    (line,) = re.findall(rf"^ACL SETUSER ({user} .*)$", DOCS.read_text(), flags=re.MULTILINE)
    return str(line).replace("PASSWORD", "p@ss").split()


@pytest.fixture
async def user_url(redis: Redis, redis_url: str) -> AsyncIterator[str]:
    """The URL of the user that the docs describe."""
    words = of_the_docs("tolaria")
    for server in await servers(redis):
        told: Any = server
        await told.execute_command("ACL", "SETUSER", *words)
    yield redis_url.replace("://", "://tolaria:p%40ss@", 1)
    for server in await servers(redis):
        await server.acl_deluser("tolaria")


async def test_the_user_of_the_docs_may_do_all_that_is_needed(user_url: str) -> None:
    info = await check(user_url)
    assert info.durable
    events, inbox, outbox = Events(), Inbox(ack=True), new_outbox()
    # Looked at and extended several times a second, and no machine too busy to do it in time.
    claims: dict[str, Any] = {"min_idle": timedelta(seconds=1)}
    async with (
        connect(user_url, name="tests") as client,
        consuming(user_url, inbox, on_event=events, **claims) as consumer,
        publishing(user_url, outbox, token=1, on_event=events, copies=Copies(0)) as publisher,
    ):
        await ServerClock().sync(client)
        lease = Lease(client, STREAMS, "r", "one", 1, timedelta(seconds=60))
        await lease.acquire()
        await beat(client, STREAMS, "r", {})
        await write_status(client, STREAMS, "r", {})
        assert await runs(client, STREAMS) == {"r": {}}
        entry_id = await send(client, CONTROL, command())
        await inbox.wait_for(1)
        await client.xadd(CONTROL, {"payload": "rubbish"})
        await events.wait_for("dead_letter")
        await finished(client)
        assert len(await letters(client)) == 1
        settlement = Settlement(stream=CONTROL, group=GROUP, entry_id=entry_id, delete=True)
        outbox.put(outcome("o"), stream=OUTCOMES, priority=NORMAL, settlement=settlement)
        outbox.put(metric(), stream=TELEMETRY, priority=NORMAL)
        outbox.put(alert("a"), stream=EMERGENCY, priority=HIGH)
        await drained(publisher)
        await last_ids(client, [CONTROL, EMERGENCY])
        assert await Follower({EMERGENCY: "0", OUTCOMES: "0"}).read(client)
        await consumer.stop()
        assert await lease.release()
    assert set(events.names()) <= {"dead_letter"}


async def test_the_user_of_the_docs_may_do_nothing_else(user_url: str) -> None:
    async with connect(user_url, name="tests") as client:
        for denied in (client.get("other"), client.config_set("appendonly", "no")):
            with pytest.raises(NoPermissionError):
                await denied
        with pytest.raises(NoPermissionError):
            await client.flushall()


async def test_a_wrong_password_is_refused_in_one_line(user_url: str) -> None:
    with pytest.raises(ServerUnreachable, match="invalid username-password pair") as error:
        await check(user_url.replace("p%40ss", "secret"))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


async def test_the_sentinels_user_of_the_docs_may_ask_for_the_master(failover: Failover) -> None:
    for sentinel in failover.sentinels:
        sentinel.ask("ACL", "SETUSER", *of_the_docs("watcher"))
    url = f"{failover.url}?sentinel_username=watcher&sentinel_password="
    try:
        assert (await check(f"{url}p%40ss")).durable
        with pytest.raises(ServerUnreachable, match="invalid username-password pair") as error:
            await check(f"{url}secret")
        assert "secret" not in str(error.value)
    finally:
        for sentinel in failover.sentinels:
            sentinel.ask("ACL", "DELUSER", "watcher")
