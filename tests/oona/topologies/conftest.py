"""The places that the bus is tested on, each started once, when a test first asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from tests.oona.topologies.places import Cluster, Failover
from tolaria_bus.oona.connection import connect, servers
from tolaria_bus.oona.embedded import EmbeddedServer

TOPOLOGIES = ("alone", "sentinel", "cluster")


@pytest.fixture(scope="session")
def failover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failover]:
    place = Failover(tmp_path_factory.mktemp("failover"))
    try:
        place.start()
        yield place
    finally:
        place.kill()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    place = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        place.start()
        yield place
    finally:
        place.kill()


@pytest.fixture(params=TOPOLOGIES)
async def url(request: pytest.FixtureRequest) -> str:
    """Each topology in turn, whole and with nothing in it."""
    if request.param == "alone":
        server: EmbeddedServer = request.getfixturevalue("server")
        found = server.url
    else:
        place: Failover | Cluster = request.getfixturevalue(
            "failover" if request.param == "sentinel" else "cluster"
        )
        place.wait_until_whole()
        found = place.url
    await wipe(found)
    return found


@pytest.fixture
async def client(url: str) -> AsyncIterator[Redis]:
    async with connect(url, name="tests") as made:
        yield made


async def wipe(url: str) -> None:
    """Forget everything, on every server."""
    async with connect(url, name="tests-wipe") as made:
        for server in await servers(made):
            await server.flushall()
