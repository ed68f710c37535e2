"""Command lines that start at once: forked from a process that has everything imported.

A new interpreter spends some three seconds of processor time on importing torch before a worker
does anything. So one process imports it all, begins nothing, and forks a child for each call. A
child is a process of its own, in a session of its own: it runs the same command line with its own
environment, folder, files, sockets, memory and generators, it dies of the same signals and ends as
any interpreter does. That a new interpreter does the same is for the tests that start one.

A supervisor among them can have its workers forked as well, by a process that was forked from it
before it began.
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
from types import SimpleNamespace
from typing import IO, Any, NoReturn

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

    def __init__(self, parent: Parent, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent
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
                self.returncode = int(self._parent.ask(bury=self.pid)["code"])
            return self.returncode


class Parent:
    """A process that forks, seen from the one that asks it to.

    Args:
        questions: Written to it, a line of JSON for each.
        answers: What it says to them.
    """

    def __init__(self, questions: IO[bytes], answers: IO[bytes]) -> None:
        self._lock = threading.Lock()
        self._questions = questions
        self._answers = answers

    def start(
        self,
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
            log: What it prints is written to its end.
            supervises: It starts workers, and they are to be forked too.
        """
        answer = self.ask(
            words=list(words),
            cwd=str(cwd),
            environment=dict(environment),
            log=str(log),
            supervises=supervises,
        )
        return Forked(self, int(answer["pid"]))

    def ask(self, **question: Any) -> dict[str, Any]:
        """Have something done: a line of JSON each way."""
        with self._lock:
            self._questions.write(json.dumps(question).encode() + b"\n")
            self._questions.flush()
            line = self._answers.readline()
        assert line, "the process that forks has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


def nursery() -> Parent:
    """The one of these tests, started when it is first asked for. It ends with them."""
    if not _nurseries:
        kept = {name: value for name, value in os.environ.items() if "TOLARIA" not in name}
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            # Read when torch is imported.
            env={**kept, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        atexit.register(process.communicate)
        _nurseries.append(Parent(process.stdin, process.stdout))
    return _nurseries[0]


_nurseries: list[Parent] = []


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
    serve(0, answers, tied=True)


def serve(questions: int, answers: int, *, tied: bool) -> None:
    """Fork on request until there are no more questions.

    Args:
        questions: Where they are read.
        answers: Where they are answered.
        tied: A child is killed when this process ends.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    # Unbuffered: a child has nothing of what was asked for later.
    with open(questions, "rb", buffering=0, closefd=False) as lines:
        while line := lines.readline():
            question = json.loads(line)
            if "bury" in question:
                _, status = os.waitpid(question["bury"], 0)
                answer = {"code": os.waitstatus_to_exitcode(status)}
            else:
                ready, told = os.pipe()
                pid = os.fork()
                if pid == 0:
                    if tied:
                        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                    for descriptor in (questions, answers, ready):
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


def become(
    told: int,
    words: list[str],
    cwd: str,
    environment: dict[str, str],
    log: str,
    *,
    supervises: bool,
) -> None:
    """Be the command line."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = cwd
    os.close(told)
    if supervises:
        fork_workers(Path(cwd))
    # As in a process that was not forked: nobody may depend on what these come to.
    import numpy as np
    import torch

    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    from tolaria_bus.cli import main as command_line

    command_line(words)


def fork_workers(cwd: Path) -> None:
    """Have the workers of this supervisor forked. They outlive it, as those that it starts do."""
    questions, asked = os.pipe()
    said, answers = os.pipe()
    if os.fork() == 0:
        os.close(asked)
        os.close(said)
        serve(questions, answers, tied=False)
        os._exit(0)
    os.close(questions)
    os.close(answers)
    parent = Parent(os.fdopen(asked, "wb"), os.fdopen(said, "rb"))

    def popen(
        command: list[str], *, env: Mapping[str, str], stdout: int | None, **_: Any
    ) -> Forked:
        log = Path(f"/proc/self/fd/{1 if stdout is None else stdout}").readlink()
        # Behind: python -m tolaria_bus
        return parent.start(command[3:], cwd=cwd, environment=env, log=log)

    from tolaria_bus.weatherlight import process

    process.subprocess = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined,assignment]


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
