"""Processes that are forked from one that has imported torch and what trains: at once, and cheaply.

One for all of a test session; it is started by the first process that is asked for.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "tests.trainer.lives",
        "tests.recovery.states",
        "torch._dynamo",  # The first optimizer of a process imports it, for more than a second.
    ]
)


def run_program(
    code: str, *arguments: str, beforehand: Callable[[], None] | None = None
) -> tuple[int, str]:
    """Run a program to its end, as ``python -c CODE ARGUMENTS`` would.

    Args:
        code: Its text.
        arguments: ``sys.argv`` behind the program's name.
        beforehand: Called in its process before it begins; can be pickled.

    Returns:
        Its exit code, or minus the signal that ended it; and what it wrote, errors too.
    """
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_be, args=(theirs, code, arguments, beforehand))
    process.start()
    theirs.close()
    with os.fdopen(os.dup(ours.fileno()), errors="replace") as written, ours:
        text = written.read()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, text


def _be(
    output: Connection,
    code: str,
    arguments: tuple[str, ...],
    beforehand: Callable[[], None] | None,
) -> None:
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    if beforehand is not None:
        beforehand()
    sys.argv = ["-c", *arguments]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)
