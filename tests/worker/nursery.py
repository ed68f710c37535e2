"""Command lines of the tests that start at once: see :mod:`infra.nursery`.

That a new interpreter does the same is for the tests that start one. A supervisor among them can
have its workers forked as well, by a process that was forked from it before it began.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from infra.nursery import Nursery, Parent, fork_on_request, serve


class Forked:
    """A process that was forked, with what its user needs of ``subprocess.Popen``.

    Attributes:
        pid: Its number: nobody else's before its end was seen here.
        returncode: The exit code, or minus the signal that ended it; ``None`` before that is seen.
    """

    def __init__(self, nursery: Parent, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery
        self._lock = threading.Lock()
        self._watched = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._watched)

    def poll(self) -> int | None:
        """The exit code, ``None`` while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It goes on.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("tolaria-bus", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, seconds: float | None) -> int | None:
        # Signals can be sent while somebody waits.
        ended = self.returncode is not None or select.select([self._watched], [], [], seconds)[0]
        with self._lock:
            if ended and self.returncode is None:
                self.returncode = self._nursery.reap(self.pid)
            return self.returncode


_nurseries: list[Nursery] = []


def start(
    words: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    supervises: bool = False,
) -> Forked:
    """Start ``tolaria-bus WORDS``.

    Args:
        words: Of the command line.
        cwd: Where.
        environment: All of it.
        log: What it prints is written there.
        supervises: It starts workers, and they are to be forked too.
    """
    log.write_bytes(b"")
    nursery = _nursery()
    pid = nursery.fork(words, cwd=cwd, environment=environment, log=log, supervises=supervises)
    return Forked(nursery, pid)


def _nursery() -> Nursery:
    """The one of these tests, started when it is first asked for."""
    if not _nurseries:
        kept = {name: value for name, value in os.environ.items() if "TOLARIA" not in name}
        # Read when torch is imported.
        made = Nursery(__name__, environment={**kept, "OMP_NUM_THREADS": "1"})
        atexit.register(made.close)
        _nurseries.append(made)
    return _nurseries[0]


def _prepare(_words: list[str], *, supervises: bool = False) -> None:
    if supervises:
        _fork_workers(Path.cwd())


def _fork_workers(cwd: Path) -> None:
    """Have the workers of this supervisor forked. They outlive it, as those that it starts do."""
    questions, asked = os.pipe()
    said, answers = os.pipe()
    if os.fork() == 0:
        os.close(asked)
        os.close(said)
        fork_on_request(questions, answers, _prepare, tied=False)
        os._exit(0)
    os.close(questions)
    os.close(answers)
    parent = Parent(os.fdopen(asked, "wb"), os.fdopen(said, "rb"))

    def popen(
        command: list[str], *, env: Mapping[str, str], stdout: int | None, **_: Any
    ) -> Forked:
        log = Path(f"/proc/self/fd/{1 if stdout is None else stdout}").readlink()
        # Behind: python -m tolaria_bus
        return Forked(parent, parent.fork(command[3:], cwd=cwd, environment=env, log=log))

    from tolaria_bus.weatherlight import process

    stand_in = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)
    process.subprocess = stand_in  # type: ignore[attr-defined,assignment]


if __name__ == "__main__":
    serve(_prepare)
