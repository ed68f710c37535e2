"""A server of its own for each test of faults, and the event loop of a worker."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from tests.oona.faults.own_server import OwnServer


@pytest.fixture
def own(tmp_path: Path, state_home: None) -> Iterator[OwnServer]:
    """A server that the test may do anything to."""
    server = OwnServer(tmp_path / "own")
    yield server
    server.stop()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that a worker has."""
    return {"uvloop": uvloop.new_event_loop}
