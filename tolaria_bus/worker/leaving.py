"""How a worker leaves: on the first signal in good order, on the second at once.

Python can't interrupt a training thread that sits in a kernel. So the drain has a deadline, and
past it, or on a second signal, what must not be lost is synced and the process is ended under the
thread: everything it was doing is recovered from the journal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Final, NoReturn

import anyio
from anyio.abc import TaskStatus

EXIT_AT_ONCE = 130
"""As a shell reports a process that was interrupted."""

_MARGIN: Final = 1.0  # seconds


class Deadline:
    """By when a stop is over: all of it, from its first cause on.

    Args:
        seconds: How long it may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def begin(self) -> float:
        """The stop begins now, unless it has; when it must be over, on the loop's clock."""
        if self._end is None:
            self._end = anyio.current_time() + self._seconds
        return self._end

    def left(self) -> timedelta:
        """What is left for the drain: closing what there is needs a little, too."""
        margin = min(_MARGIN, self._seconds / 5)
        return timedelta(seconds=max(0.0, self.begin() - margin - anyio.current_time()))

    async def passed(self) -> None:
        """Wait until it is over."""
        await anyio.sleep_until(self.begin())


async def watch_signals(
    drain: Callable[[str], None],
    leave: Callable[[], NoReturn],
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``drain`` at the first SIGINT or SIGTERM, ``leave`` at the second."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        drained = False
        async for number in signals:
            if drained:
                leave()
            drained = True
            drain(signal.Signals(number).name)


def exit_at_once(sync: Callable[[], None], code: int = EXIT_AT_ONCE) -> NoReturn:
    """Sync what is on disk and end the process, whatever its threads are doing."""
    try:
        sync()
    finally:
        os._exit(code)
