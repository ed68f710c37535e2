"""A real server for one subject, in a folder that is gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tolaria_bus.oona.embedded import EmbeddedServer


@dataclass(frozen=True)
class Place:
    """Where a subject works: a server that writes every entry to disk, and a folder."""

    url: str
    folder: Path


@contextmanager
def server(run: str = "bench") -> Iterator[Place]:
    """The embedded server as a run has it (``appendfsync always``)."""
    with tempfile.TemporaryDirectory(prefix="tolaria-bench-") as folder:
        path = Path(folder)
        with EmbeddedServer.start(path, run) as embedded:
            yield Place(embedded.url, path)
