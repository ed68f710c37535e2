"""A server that is killed, and started again on what it had written."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tolaria_bus.oona.embedded import EmbeddedServer


class Server:
    """The server that a run has (``appendfsync always``), always at the same address.

    Main thread only. A context manager.

    Args:
        folder: For its data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedServer.start(folder, "torture")
        self.url = self._server.url

    @property
    def pid(self) -> int:
        """Its process."""
        return self._server.pid

    def kill(self) -> None:
        """End it as a power cut would."""
        os.kill(self._server.pid, signal.SIGKILL)
        self._server.stop()

    def start(self) -> None:
        """Start it again.

        Raises:
            RuntimeError: It listens somewhere else now: its folder's path is too long.
        """
        self._server = EmbeddedServer.start(self._folder, "torture")
        if self._server.url != self.url:
            raise RuntimeError(f"{self._folder}: too long a path for a server that is killed")

    def freeze(self) -> None:
        """It answers no more, and its connections stay open."""
        os.kill(self._server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        os.kill(self._server.pid, signal.SIGCONT)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
