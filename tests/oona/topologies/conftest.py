"""The places that the bus is tested on, each started once, when a test first asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.oona.topologies.places import Cluster, Failover
from tolaria_bus.oona.connection import connect, servers
from tolaria_bus.oona.embedded import EmbeddedServer


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


@pytest.fixture(params=("alone", "sentinel", "cluster"))
async def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of each topology in turn, whole and with nothing in it."""
    return await empty_place(request, request.param)


async def empty_place(request: pytest.FixtureRequest, topology: str) -> str:
    """The URL of a topology, whole and with nothing in it."""
    if topology == "alone":
        server: EmbeddedServer = request.getfixturevalue("server")
        url = server.url
    else:
        name = {"sentinel": "failover"}.get(topology, topology)
        place: Failover | Cluster = request.getfixturevalue(name)
        place.wait_until_whole()
        url = place.url
    await wipe(url)
    return url


async def wipe(url: str) -> None:
    """Forget everything, on every server."""
    async with connect(url, name="tests-wipe") as made:
        for server in await servers(made):
            await server.flushall()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of ``test_again`` only what asks for its server: the rest would be the same once more."""
    items[:] = [
        item
        for item in items
        if item.path.name != "test_again.py" or "redis_url" in getattr(item, "fixturenames", ())
    ]
