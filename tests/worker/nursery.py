"""Command lines that start at once: forked from a process that has everything imported.

A new interpreter spends some three seconds of processor time on importing torch before a worker
does anything. So one process imports it all, begins nothing, and forks a child for each call. A
child is a process of its own, in a session of its own: it runs the same command line with its own
environment, folder, files, sockets, memory and generators, it dies of the same signals and ends as
any interpreter does. That a new interpreter does the same is for the tests that start one.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "tolaria_bus.cli.progress",
    "tolaria_bus.cli.run",
    "tolaria_bus.cli.training",
    "tolaria_bus.worker",
    "sklearn.datasets",
    "torch._dynamo",  # The first optimizer of a process imports it.
)
_PR_SET_PDEATHSIG = 1


class Forked:
    """A process that was forked, with what its user needs of ``subprocess.Popen``.

    Attributes:
        pid: Its number: nobody else's before its end was seen here.
        returncode: The exit code, or minus the signal that ended it; ``None`` before that is seen.
    """

    def __init__(self, nursery: Nursery, pid: int) -> None:
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
                self.returncode = int(self._nursery.ask(bury=self.pid)["code"])
            return self.returncode


class Nursery:
    """The process that forks. It ends with the one that started it, and its children with it."""

    def __init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if "TOLARIA" not in name}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            # Read when torch is imported.
            env={**kept, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        atexit.register(self.close)

    def start(
        self, words: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path
    ) -> Forked:
        """Start ``tolaria-bus WORDS``.

        Args:
            words: Of the command line.
            cwd: Where.
            environment: All of it.
            log: What it prints is written there.
        """
        answer = self.ask(
            words=list(words), cwd=str(cwd), environment=dict(environment), log=str(log)
        )
        return Forked(self, int(answer["pid"]))

    def ask(self, **question: Any) -> dict[str, Any]:
        """Have something done: a line of JSON each way."""
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, f"the nursery ended with {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        with self._lock, self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


_nurseries: list[Nursery] = []


def nursery() -> Nursery:
    """The one of these tests, started when it is first asked for."""
    if not _nurseries:
        _nurseries.append(Nursery())
    return _nurseries[0]


def main() -> None:
    """Fork on request until standard input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    # What is there is never looked through: that would copy it into each child.
    gc.collect()
    gc.freeze()
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    # Unbuffered: a child has nothing of what was asked for later.
    with open(0, "rb", buffering=0, closefd=False) as lines:
        while line := lines.readline():
            question = json.loads(line)
            if "bury" in question:
                _, status = os.waitpid(question["bury"], 0)
                answer = {"code": os.waitstatus_to_exitcode(status)}
            else:
                ready, told = os.pipe()
                pid = os.fork()
                if pid == 0:
                    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                    for descriptor in (answers, ready):
                        os.close(descriptor)
                    try:
                        become(told, **question)
                    finally:
                        end(sys.exception())
                os.close(told)
                # Its end of the pipe is closed when it is in its own session, with its own output.
                os.read(ready, 1)
                os.close(ready)
                answer = {"pid": pid}
            os.write(answers, json.dumps(answer).encode() + b"\n")


def become(told: int, words: list[str], cwd: str, environment: dict[str, str], log: str) -> None:
    """Be the command line."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = cwd
    os.close(told)
    # As in a process that was not forked: nobody may depend on what these come to.
    import numpy as np
    import torch

    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    from tolaria_bus.cli import main as command_line

    command_line(words)


def end(error: BaseException | None) -> NoReturn:
    """End as an interpreter does, but for taking apart what is shared with the nursery."""
    code: object = 0
    if isinstance(error, SystemExit):
        code = error.code or 0
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    # Private, and what it does by itself: it waits for threads.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
