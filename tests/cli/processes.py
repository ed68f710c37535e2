"""``tolaria-bus`` as a process of its own, read line by line."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

SECONDS = 120.0
"""Until a line that is expected must be there, on a busy machine."""


class Process:
    """A command that runs.

    Attributes:
        popen: It.
    """

    def __init__(self, *words: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tolaria_bus", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self._out = _lines(self.popen.stdout)
        self._err = _lines(self.popen.stderr)

    def line(self) -> str:
        """The next line of standard output; waits for it."""
        return self._out.get(timeout=SECONDS)

    def complaint(self) -> str:
        """The next line of standard error; waits for it."""
        return self._err.get(timeout=SECONDS)

    def rest(self) -> tuple[list[str], list[str]]:
        """Wait for its end; lines of standard output and error that nobody has taken."""
        self.popen.wait(SECONDS)
        return list(iter(self._out.get, "")), list(iter(self._err.get, ""))


@contextmanager
def started(*words: str) -> Iterator[Process]:
    """Start a command; it is gone at the end."""
    process = Process(*words)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()


def _lines(stream: IO[str]) -> queue.Queue[str]:
    """Lines as they come; an empty one at the end."""
    found: queue.Queue[str] = queue.Queue()

    def read() -> None:
        with stream:
            for line in stream:
                found.put(line.rstrip("\n"))
        found.put("")

    threading.Thread(target=read, daemon=True).start()
    return found
