"""One life of a run: a process that may be signalled and waited for, and what was done to it."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from collections.abc import Callable


class Worker:
    """One life.

    Args:
        pid: Its process, which stays its own until it is reaped.
        reap: Waits for its end and returns its exit code.

    Attributes:
        struck: We have killed it.
        without_server: Its server was away for a while.
        without_disk: The disk was full for a while.
        asked_to_leave: By a signal, which ends it at once where it has just begun to start.
        succeeded: After its end its rival had the run for a while.
    """

    def __init__(self, pid: int, reap: Callable[[], int]) -> None:
        self.pid = pid
        self.reap = reap
        self.struck = False
        self.without_server = False
        self.without_disk = False
        self.asked_to_leave = False
        self.succeeded = False
        self._fd = os.pidfd_open(pid)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    @property
    def ended(self) -> bool:
        """It has ended, and may not be reaped yet."""
        return self.ended_within(0.0)

    def ended_within(self, seconds: float) -> bool:
        """Wait for its end."""
        return bool(self._poll.poll(seconds * 1000))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def limit_files(self, size: int) -> None:
        """Let no file of its own grow beyond a size."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, hard))

    def close(self) -> None:
        """Forget it."""
        os.close(self._fd)
