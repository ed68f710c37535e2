"""A server that a test may kill, wipe and stop."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tolaria_bus.oona.embedded import EmbeddedServer


class OwnServer:
    """Always at the same address.

    Args:
        folder: For its data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedServer.start(folder, "r")
        self.url = self._server.url

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return Path(self.url.removeprefix("unix://"))

    def kill(self) -> None:
        """End it as a power cut would."""
        os.kill(self._server.pid, signal.SIGKILL)
        self._server.stop()

    def start(self) -> None:
        """Start it again, on what it had written."""
        self._server = EmbeddedServer.start(self._folder, "r")
        assert self._server.url == self.url

    def wipe(self) -> None:
        """Remove its data; it must not run."""
        shutil.rmtree(self._folder / "valkey" / "appendonlydir")

    def freeze(self) -> None:
        """It answers no more, and its connections stay open."""
        os.kill(self._server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        os.kill(self._server.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it, frozen or not."""
        self.thaw()
        self._server.stop()
