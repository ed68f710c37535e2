"""Looks at the processes all the time: do the runs get on, do memory and open files stay flat?"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field

import psutil

from infra.soak.house import RUNS, House
from tolaria_bus.safety import WorkerState

EVERY = 0.5  # seconds
WARM_UP = 45.0
"""Seconds of a process's life that are not judged: it loads, and fills its buffers."""
LONG_ENOUGH = 90.0
"""Seconds after that; a shorter life says nothing."""
PARTS = 4
"""The first and the last of so many parts of a life are compared, by their medians."""
ALLOWED_SHARE = 0.15
ALLOWED_MIB = 32.0
ALLOWED_FILES = 12
SERVER_FILES = 40
"""Everybody's pools of connections grow with what they do at the same time, and not back."""
SERVER_MIB = 128.0
"""A server keeps what is on its streams, and the buffers of what was refused for its size."""


@dataclass
class Life:
    """One process.

    Attributes:
        role: ``server``, ``weatherlight``, ``tamiyo``, or a run.
        pid: Its number.
        samples: Age in seconds, resident MiB, open files.
    """

    role: str
    pid: int
    samples: list[tuple[float, float, int]] = field(default_factory=list)

    @property
    def age(self) -> float:
        """Seconds, when it was last looked at."""
        return self.samples[-1][0] if self.samples else 0.0

    def growth(self) -> tuple[float, float, float, float] | None:
        """MiB and files at the beginning and the end of it; ``None``: it says nothing."""
        judged = [sample for sample in self.samples if sample[0] >= WARM_UP]
        if not judged or judged[-1][0] - judged[0][0] < LONG_ENOUGH:
            return None
        part = max(1, len(judged) // PARTS)
        first, last = judged[:part], judged[-part:]
        return (
            statistics.median(item[1] for item in first),
            statistics.median(item[1] for item in last),
            statistics.median(item[2] for item in first),
            statistics.median(item[2] for item in last),
        )

    def complaints(self) -> list[str]:
        """What grows that shouldn't."""
        found = self.growth()
        if found is None:
            return []
        mib, grown, files, opened = found
        allowed = max(ALLOWED_MIB, ALLOWED_SHARE * mib)
        more = ALLOWED_FILES
        if self.role == "server":
            allowed, more = max(allowed, SERVER_MIB), SERVER_FILES
        who = f"{self.role} (process {self.pid}, {self.age:.0f} s old)"
        wrong = []
        if grown > mib + allowed:
            wrong.append(f"{who} grew from {mib:.0f} to {grown:.0f} MiB")
        if opened > files + more:
            wrong.append(f"{who} had {files:.0f} files open and has {opened:.0f}")
        return wrong


class Watch(threading.Thread):
    """A thread of its own.

    Args:
        house: Has the processes.
        patience: Seconds that a run may make no step, unless it is told to stand still.

    Attributes:
        lives: Every process that was seen.
        stuck: Runs that made no step for too long, a line each.
        longest: The longest time without a step, by run.
        steps: How many steps were made by each run.
    """

    def __init__(self, house: House, patience: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.lives: dict[tuple[str, int], Life] = {}
        self.stuck: list[str] = []
        self.longest: dict[str, float] = dict.fromkeys(RUNS, 0.0)
        self.steps: dict[str, int] = dict.fromkeys(RUNS, 0)
        self.failure = ""
        self._house, self._patience = house, patience
        self._last = {run: (0, time.monotonic(), False) for run in RUNS}
        self._left = threading.Event()

    def run(self) -> None:
        """Look until told to leave."""
        try:
            while not self._left.wait(EVERY):
                for run in RUNS:
                    self._look_at_steps(run)
                    self._sample(run, self._house.worker(run))
                for name in ("server", "weatherlight", "tamiyo"):
                    self._sample(name, self._house.pid(name))
        except Exception as error:  # noqa: BLE001 - told by the verdict
            self.failure = f"{type(error).__name__}: {error}"

    def leave(self) -> None:
        """End."""
        self._left.set()
        self.join()

    def _look_at_steps(self, run: str) -> None:
        now = time.monotonic()
        with self._house.view(run) as view:
            step, state = view.step, view.state
            identity = view.identity
        held = state in (WorkerState.PAUSED, WorkerState.HALTED)
        held = held and identity is not None and identity.lives()
        last, since, told = self._last[run]
        if step != last or held:
            # Back after a rollback, on the whole forward.
            self.steps[run] += max(0, step - last)
            self._last[run] = (step, now, False)
            return
        self.longest[run] = max(self.longest[run], now - since)
        if now - since > self._patience and not told:
            self._last[run] = (last, since, True)
            self.stuck.append(
                f"{run} made no step for {now - since:.0f} s, at {step}, {state.name}"
            )

    def _sample(self, role: str, pid: int) -> None:
        try:
            process = psutil.Process(pid) if pid else None
            if process is None:
                return
            with process.oneshot():
                age = time.time() - process.create_time()
                mib, files = process.memory_info().rss / 2**20, process.num_fds()
        except psutil.Error:
            return
        life = self.lives.setdefault((role, pid), Life(role, pid))
        life.samples.append((age, mib, files))
