"""What may not be lost isn't delivered before a replica has it, where that is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.oona.bus import (
    HIGH,
    NORMAL,
    STREAMS,
    Events,
    alert,
    drained,
    envelopes,
    metric,
    outcome,
    publishing,
    until,
)
from tests.oona.topologies.conftest import empty_place
from tests.oona.topologies.processes import Server, eventually
from tests.oona.topologies.test_cluster import run_of_third
from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.copies import Copies, TooFewCopies
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.spool import Spool

RUN = run_of_third(0)
"""Its primary is the one that has a replica."""
OUTCOMES, TELEMETRY = STREAMS.outcomes(RUN), STREAMS.telemetry(RUN)
SOON = timedelta(milliseconds=200)


@dataclass
class Pair:
    """A server and its replica."""

    url: str
    replica: Server


@pytest.fixture(params=("sentinel", "cluster"))
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    url = await empty_place(request, request.param)
    place = request.getfixturevalue({"sentinel": "failover"}.get(request.param, request.param))
    replica = (
        place.replica()
        if request.param == "sentinel"
        else next(node for node in place.nodes if node.info("replication")["role"] == "slave")
    )
    yield Pair(url, replica)
    replica.resume()
    await eventually(place.is_whole)


@pytest.fixture
async def redis(pair: Pair) -> AsyncIterator[Redis]:
    async with connect(pair.url, name="tests") as client:
        yield client


@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_packet_without_its_copy_is_sent_again_under_the_same_id(
    on_disk: bool, pair: Pair, redis: Redis, tmp_path: Path
) -> None:
    events = Events()
    copies = Copies(1, on_disk=True) if on_disk else Copies(1, within=SOON)
    with Spool(tmp_path / "spool") as spool:
        outbox = Outbox(1000, spool, STREAMS, RUN)
        pair.replica.pause()
        outbox.put(alert("a"), stream=TELEMETRY, priority=HIGH, message_id="a")
        outbox.put(outcome("o"), stream=OUTCOMES, priority=HIGH, message_id="o")
        outbox.put(metric(), stream=TELEMETRY, priority=NORMAL, message_id="m")
        async with publishing(pair.url, outbox, on_event=events, copies=copies) as publisher:
            refused = await events.wait_for("refused")
            assert "on 0 replicas of 1" in refused["error"]
            await until(lambda: outbox.depth == 2)
            assert len(spool) == 2
            pair.replica.resume()
            await drained(publisher)
        assert len(spool) == 0
    ids = [envelope.message_id for envelope in await envelopes(redis, TELEMETRY)]
    assert set(ids) == {"a", "m"}
    assert ids.count("m") == 1, "only what may not be lost is waited for"
    assert [envelope.message_id for envelope in await envelopes(redis, OUTCOMES)] == ["o"]


async def test_a_repeated_outcome_waits_for_its_copy_too(pair: Pair, redis: Redis) -> None:
    """Nothing is added for it; and on a new connection there is nothing else to wait for."""
    pair.replica.pause()
    for _ in range(2):
        events, outbox = Events(), Outbox(1000, None, STREAMS, RUN)
        outbox.put(outcome("o"), stream=OUTCOMES, priority=HIGH, message_id="o")
        async with publishing(pair.url, outbox, on_event=events, copies=Copies(1, within=SOON)):
            await events.wait_for("refused")
            assert outbox.depth == 1
    assert [envelope.message_id for envelope in await envelopes(redis, OUTCOMES)] == ["o"]


def test_the_answer_of_the_server_is_read() -> None:
    assert Copies(1).missing(1) is None
    assert Copies(1).missing(2) is None
    assert isinstance(Copies(2).missing(1), TooFewCopies)
    assert Copies(1, on_disk=True).missing([1, 1]) is None
    assert isinstance(Copies(1, on_disk=True).missing([0, 1]), TooFewCopies)
    assert isinstance(Copies(1).missing(OSError("gone")), OSError)
