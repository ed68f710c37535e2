"""A real server for every test that needs one, started once per session."""

import signal
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from tolaria_bus.oona.connection import connect
from tolaria_bus.oona.embedded import EmbeddedServer

# A shell's background job begins with Ctrl-C ignored, and so would all processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast a machine is makes no test fail.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep notes of running servers out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, state_home: None) -> Iterator[EmbeddedServer]:
    """The session's server; use ``redis_url`` or ``redis`` for an empty one."""
    with EmbeddedServer.start(tmp_path_factory.mktemp("server"), "tests") as started:
        yield started


@pytest.fixture
async def redis_url(server: EmbeddedServer) -> str:
    """The URL of the session's server, with nothing in it."""
    async with connect(server.url, name="tests-flush") as client:
        await client.flushall()
    return server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the empty server; its blocking reads may take up to a minute."""
    async with connect(redis_url, name="tests", block=timedelta(seconds=60)) as client:
        yield client
