"""A server of its own for each test of faults."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oona.faults.own_server import OwnServer


@pytest.fixture
def own(tmp_path: Path, state_home: None) -> Iterator[OwnServer]:
    """A server that the test may do anything to."""
    server = OwnServer(tmp_path / "own")
    yield server
    server.stop()
