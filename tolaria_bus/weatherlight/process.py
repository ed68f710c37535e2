"""A worker's process: started or adopted, asked for its stacks, ended.

A worker has a session of its own and no pipe to us: a Ctrl-C meant for us doesn't reach it, and our
death costs it nothing. The next Weatherlight finds it by what its signal block says, its number and
the time of its start, and goes on watching.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final, Self

import anyio

from tolaria_bus.safety.layout import process_began

LOG: Final = "worker.log"
"""What a worker writes, in its run's folder."""
STACKS: Final = "stacks.txt"
"""Where a worker's faulthandler writes, at SIGUSR2."""

SERVER_VARIABLE: Final = "TOLARIA_REDIS_URL"
"""By which a worker is told its server: words of a command line are seen by everybody."""

_LARGEST_LOG: Final = 64 << 20  # bytes; then it is put aside, once
_STACKS_WAIT: Final = timedelta(seconds=3)
_SETTLED: Final = 0.1  # seconds in which a dump doesn't grow
_POLL: Final = 0.02  # seconds


class WorkerProcess:
    """One process of a worker.

    Args:
        folder: The run's folder.
        pid: The process.
        began: When it began; see ``layout.process_began``.
        child: Where we started it ourselves.

    Attributes:
        folder: The run's folder.
        pid: The process.
        began: When that began.
    """

    def __init__(
        self, folder: Path, pid: int, began: int, child: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.pid = pid
        self.began = began
        self.folder = folder
        self._child = child

    @classmethod
    def spawn(
        cls, words: Sequence[str], folder: Path, environment: Mapping[str, str], *, inherit: bool
    ) -> Self:
        """Start ``tolaria-bus WORDS``.

        Args:
            words: Of the command line.
            folder: The run's folder; there is one.
            environment: All of it.
            inherit: It writes where we do, and not into the run's folder.

        Raises:
            OSError: It can't be started, or its log not be opened.
        """
        output = None if inherit else _log(folder / LOG)
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "tolaria_bus", *words],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            if output is not None:
                os.close(output)
        return cls(folder, child.pid, process_began(child.pid), child)

    def alive(self) -> bool:
        """Does it run? Of a child of ours the body is taken away."""
        if self._child is not None:
            return self._child.poll() is None
        return process_began(self.pid) == self.began != 0

    @property
    def frozen(self) -> bool:
        """A signal has stopped it (SIGSTOP, a debugger)."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return False
        return fields[0] in (b"T", b"t")

    @property
    def succeeded(self) -> bool:
        """It ended by itself and said that all is well; false of an adopted one: nobody knows."""
        return self._child is not None and self._child.returncode == 0

    @property
    def ended_by(self) -> str:
        """For people: ``exit code 1``, ``SIGKILL``; empty while it runs, or where nobody knows."""
        code = None if self._child is None else self._child.returncode
        if code is None:
            return ""
        if code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    @property
    def server_url(self) -> str:
        """The server that it was started with; empty where nobody can tell."""
        try:
            variables = Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return ""
        prefix = f"{SERVER_VARIABLE}=".encode()
        found = (item for item in variables if item.startswith(prefix))
        return next(found, b"").removeprefix(prefix).decode("utf-8", "replace")

    def ask_to_stop(self) -> None:
        """In good order at the first time, at once at the second."""
        self._send(signal.SIGTERM)

    async def kill(self) -> None:
        """End it with all that it started, and wait until it is gone."""
        if self.alive():
            try:
                leads = os.getpgid(self.pid) == self.pid
            except ProcessLookupError:
                leads = False
            if leads:
                # Its data loader's workers too.
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self._send(signal.SIGKILL)
        await self.gone()

    async def gone(self) -> None:
        """Wait until it runs no more."""
        while self.alive():  # noqa: ASYNC110 - of an adopted process nothing else tells
            await anyio.sleep(_POLL)

    async def dump_stacks(self) -> str:
        """Have it write the stacks of all its threads; what it wrote, empty if it didn't."""
        path = self.folder / STACKS
        before = _size(path)
        self._send(signal.SIGUSR2)
        size, since = before, time.monotonic()
        with anyio.move_on_after(_STACKS_WAIT.total_seconds()):
            while size == before or time.monotonic() - since < _SETTLED:
                await anyio.sleep(_POLL)
                now = _size(path)
                if now != size:
                    size, since = now, time.monotonic()
        if size <= before:
            return ""
        with path.open("rb") as file:
            file.seek(before)
            return file.read().decode("utf-8", "replace")

    def last_words(self) -> str:
        """The last line of its log, for people; empty where it writes elsewhere."""
        try:
            with (self.folder / LOG).open("rb") as file:
                file.seek(max(0, _size(self.folder / LOG) - 4096))
                lines = file.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:500]

    def _send(self, number: signal.Signals) -> None:
        # Never to a number that is another process's by now.
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _log(path: Path) -> int:
    if _size(path) > _LARGEST_LOG:
        path.replace(path.with_suffix(".log.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
