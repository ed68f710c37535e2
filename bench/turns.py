"""Two programs that train the same job, by turns: each is stopped while the other runs.

A machine's speed changes by a tenth within seconds, which is more than what is to be measured. So
they take turns of a second or less, both with the whole machine to themselves, and what one loses
to a slow moment the other loses in the next. Whatever a program does beside its steps, in whichever
thread or process, costs the steps of its own turns and only those.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_POLL = 0.05
_START_LIMIT = 300.0
_CAPACITY = 1 << 20


@dataclass
class Runner:
    """A program that notes the clock at its steps.

    Attributes:
        process: Its process, the first of a group.
        stamps: What it notes; see :func:`open_stamps`.
        turns: When its turns began and ended.
    """

    process: subprocess.Popen[bytes]
    stamps: memoryview
    turns: list[tuple[float, float]] = field(default_factory=list)

    def turn(self, seconds: float) -> None:
        """Let it run for a while."""
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGCONT)
        time.sleep(seconds)
        os.killpg(self.process.pid, signal.SIGSTOP)
        self.turns.append((began, time.monotonic()))
        if self.process.poll() is not None:
            raise RuntimeError(f"the program ended with {self.process.returncode}")

    def get_on(self, steps: int) -> None:
        """Let it run until it has made so many steps."""
        end = time.monotonic() + _START_LIMIT
        os.killpg(self.process.pid, signal.SIGCONT)
        while self.stamps[0] < steps:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"made {self.stamps[0]:.0f} of {steps} steps")
            time.sleep(_POLL)
        os.killpg(self.process.pid, signal.SIGSTOP)

    def seconds_a_step(self, turns: Sequence[tuple[float, float]]) -> float:
        """The mean over whole steps within these turns; the first one of each doesn't count."""
        stamps = np.array(self.stamps[1 : int(self.stamps[0]) + 1])
        seconds, steps = 0.0, 0
        for began, ended in turns:
            within = stamps[(stamps > began) & (stamps < ended)][1:]
            if len(within) > 1:
                seconds += float(within[-1] - within[0])
                steps += len(within) - 1
        if not steps:
            raise RuntimeError("not one whole step in these turns: the machine is too busy")
        return seconds / steps


@contextmanager
def runner(words: Sequence[str], stamps: Path) -> Iterator[Runner]:
    """Start ``python words``, which is to note its steps in the file ``stamps``."""
    noted = open_stamps(stamps)
    process = subprocess.Popen(
        [sys.executable, *words], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        yield Runner(process, noted)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def open_stamps(path: Path) -> memoryview:
    """Room for stamps that two processes share: float64, the first of them their count."""
    with path.open("ab") as file:
        file.truncate(8 * _CAPACITY)
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * _CAPACITY)).cast("d")


def by_turns(
    runners: Sequence[Runner], *, rounds: int, turns: int, seconds: float
) -> list[list[float]]:
    """Let them run by turns.

    Args:
        runners: All stopped.
        rounds: So many figures for each.
        turns: Of each runner in a round.
        seconds: Of a turn.

    Returns:
        Mean seconds a step, by runner and round.
    """
    found: list[list[float]] = [[] for _ in runners]
    for _ in range(rounds):
        for number in range(turns):
            for one in runners[:: 1 if number % 2 else -1]:
                one.turn(seconds)
        for figures, one in zip(found, runners, strict=True):
            figures.append(one.seconds_a_step(one.turns[-turns:]))
    return found
