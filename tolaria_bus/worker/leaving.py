"""How a worker leaves: on the first signal in good order, on the second at once.

Python can't interrupt a training thread that sits in a kernel. So the drain has a deadline, and
past it, or on a second signal, what must not be lost is synced and the process is ended under the
thread: everything it was doing is recovered from the journal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

import anyio
from anyio.abc import TaskStatus

EXIT_AT_ONCE = 130
"""As a shell reports a process that was interrupted."""


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
