"""Command lines that start at once: forked from a process that has everything imported.

A new interpreter spends some three seconds of processor time on importing torch before a worker
does anything. So one process imports it all, begins nothing, and forks a child for each call. A
child is a process of its own, in a session of its own: it runs the same command line with its own
environment, folder, files, sockets, memory and generators, it dies of the same signals and ends as
any interpreter does. What it shares with its siblings is the code that was read from disk.

Protocol, a line of JSON each way: ``{"words", "cwd", "environment", "log", "more"}`` is answered by
``{"pid"}``, ``{"reap": pid}`` by ``{"code"}`` as ``Popen.returncode`` has it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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


class Parent:
    """A process that forks, seen from the one that asks it to. For any thread.

    Args:
        questions: Written to it.
        answers: Read from it.
    """

    def __init__(self, questions: IO[bytes], answers: IO[bytes]) -> None:
        self._lock = threading.Lock()
        self._questions = questions
        self._answers = answers

    def fork(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        log: Path,
        **more: Any,
    ) -> int:
        """Start ``tolaria-bus WORDS``; return when it is in its own session.

        Args:
            words: Of the command line.
            cwd: Where.
            environment: All of it.
            log: What it prints is appended there.
            more: For the module's preparation; plain values.

        Returns:
            Its process id, which stays its own until :meth:`reap`.
        """
        answer = self._ask(
            words=list(words),
            cwd=str(cwd),
            environment=dict(environment),
            log=str(log),
            more=more,
        )
        return int(answer["pid"])

    def reap(self, pid: int) -> int:
        """Wait for a child's end: its exit code, or minus the signal that ended it.

        Nothing else is answered meanwhile.
        """
        return int(self._ask(reap=pid)["code"])

    def _ask(self, **question: Any) -> dict[str, Any]:
        with self._lock:
            self._questions.write(json.dumps(question).encode() + b"\n")
            self._questions.flush()
            line = self._answers.readline()
        if not line:
            raise RuntimeError("the nursery has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Nursery(Parent):
    """The process that forks. It ends with the one that started it, and its children with it.

    A context manager; for any thread.

    Args:
        module: Whose :func:`serve` it runs.
        environment: All of the process's own; by default that of this one.
    """

    def __init__(
        self, module: str = __name__, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        super().__init__(self._process.stdin, self._process.stdout)

    def close(self) -> None:
        """End it, and its children."""
        with self._lock, self._process:
            self._questions.close()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(prepare: Callable[..., object] = lambda words: None) -> None:
    """Fork on request until standard input ends.

    Args:
        prepare: Called in each child before the command line, with its words and with what
            :meth:`Nursery.fork` was given beside them.
    """
    for name in IMPORTED:
        importlib.import_module(name)
    # What is there is never looked through: that would copy it into each child.
    gc.collect()
    gc.freeze()
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    fork_on_request(0, answers, prepare, tied=True)


def fork_on_request(
    questions: int, answers: int, prepare: Callable[..., object], *, tied: bool
) -> None:
    """Fork until there are no more questions.

    Args:
        questions: Where they are read.
        answers: Where they are answered.
        prepare: As :func:`serve` has it.
        tied: A child is killed when this process ends.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    # Unbuffered: a child has nothing of what was asked for later.
    with open(questions, "rb", buffering=0, closefd=False) as lines:
        while line := lines.readline():
            question = json.loads(line)
            if "reap" in question:
                _, status = os.waitpid(question["reap"], 0)
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
                        _become(told, prepare, **question)
                    finally:
                        _end(sys.exception())
                os.close(told)
                # Its end of the pipe is closed when it is in its own session, with its own output.
                os.read(ready, 1)
                os.close(ready)
                answer = {"pid": pid}
            os.write(answers, json.dumps(answer).encode() + b"\n")


def _become(
    told: int,
    prepare: Callable[..., object],
    words: list[str],
    cwd: str,
    environment: dict[str, str],
    log: str,
    more: dict[str, Any],
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
    # As in a process that was not forked: nobody may depend on what these come to.
    import numpy as np
    import torch

    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    prepare(words, **more)
    from tolaria_bus.cli import main as command_line

    command_line(words)


def _end(error: BaseException | None) -> NoReturn:
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
    serve()
