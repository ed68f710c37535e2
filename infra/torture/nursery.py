"""Workers that start at once: forked from a process that has everything imported.

To import torch takes a worker some three seconds, in which there is little to kill. So one process
imports it all, begins nothing, and forks a child for each life. The child is a process of its own:
it runs the same command line, has its own generators, files, sockets and memory, and dies of the
same SIGKILL. What it shares with its siblings is the code that was read from disk.

Protocol, a line of JSON each way: ``{"words", "cwd", "log", "environment", "said", "cold"}`` is
answered by ``{"pid"}``, ``{"reap": pid}`` by ``{"code"}`` as ``Popen.returncode`` has it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from infra.torture.jobs import SmallBytes, SmallDigits

PRELOADED = (
    "tolaria_bus.cli.progress",
    "tolaria_bus.cli.run",
    "tolaria_bus.cli.training",
    "tolaria_bus.worker",
    "sklearn.datasets",
    "torch._dynamo",  # The first optimizer of a process imports it.
)
_PR_SET_PDEATHSIG = 1


class Nursery:
    """The process that forks workers. A context manager; its children end with it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra.torture.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def start(
        self,
        words: list[str],
        *,
        cwd: Path,
        log: Path,
        environment: dict[str, str],
        said: Path,
        cold: bool = False,
    ) -> int:
        """Fork a worker.

        Args:
            words: Of the command line, behind ``tolaria-bus``.
            cwd: Its working folder.
            log: What it prints is appended there.
            environment: Variables beside the nursery's.
            said: Where it notes each alert that it has queued.
            cold: Become a new interpreter, which imports everything and notes nothing.

        Returns:
            Its process id, which stays its own until :meth:`reap`.
        """
        answer = self._ask(
            words=words,
            cwd=str(cwd),
            log=str(log),
            environment=environment,
            said=str(said),
            cold=cold,
        )
        return int(answer["pid"])

    def reap(self, pid: int) -> int:
        """Wait for a worker's end: its exit code, or minus the signal that ended it."""
        return int(self._ask(reap=pid)["code"])

    def close(self) -> None:
        """End it, and its children."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the nursery ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    """Fork on request until standard input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    for job in (SmallDigits(), SmallBytes()):
        job.train_data()  # Read from disk and kept by its module.
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for line in sys.stdin:
        question = json.loads(line)
        if "reap" in question:
            _, status = os.waitpid(question["reap"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                os.close(answers)
                _work(**question)
            answer = {"pid": pid}
        os.write(answers, json.dumps(answer).encode() + b"\n")


def _work(
    words: list[str], cwd: str, log: str, environment: dict[str, str], said: str, *, cold: bool
) -> NoReturn:
    """Be a worker, as the command line would be one."""
    code: object = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(cwd)
        os.environ.update(environment)
        if cold:
            words = [sys.executable, "-m", "tolaria_bus", *words]
            os.execv(words[0], words)  # noqa: S606
        # As in a process that was not forked: nobody may depend on what these come to.
        random.seed()
        np.random.seed()  # noqa: NPY002
        torch.seed()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _listen(said)
        from tolaria_bus.cli import main as command_line

        command_line(words)
    except SystemExit as ending:
        code = ending.code or 0
    except BaseException:  # noqa: BLE001 - as the interpreter does at its top
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _listen(said: str) -> None:
    """Note the id of each alert once it is queued: from then on it must not be lost."""
    from tolaria_bus.leyline import MessagePriority, TelemetryPacket
    from tolaria_bus.oona.outbox import Outbox

    notes = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    put = Outbox.put

    def put_and_note(self: Outbox, message: Any, **options: Any) -> bool:
        taken = put(self, message, **options)
        loud = options["priority"] >= MessagePriority.MESSAGE_PRIORITY_HIGH
        if loud and options["stream"] == self.streams.emergency:
            events = message.events if isinstance(message, TelemetryPacket) else ()
            names = ",".join(event.event_id for event in events) or type(message).__name__
            os.write(notes, f"{options['message_id']} {names}\n".encode())
        return taken

    Outbox.put = put_and_note  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
