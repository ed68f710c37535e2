"""How commands that only read and print are ended by a signal.

Not by cancelling their task, as asyncio does with Ctrl-C: a cancellation that comes while
redis-py takes a connection from its pool is swallowed there together with a timeout of zero.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


def leave_at_once() -> None:
    """From now on SIGINT and SIGTERM end the process with 0, wherever it is.

    Even where it waits for a reader of its output that has stopped reading, and even as the first
    process of a container, which the kernel ends by no signal that has no handler.
    """
    _handle(_leave, signal.SIGINT, signal.SIGTERM)


def interrupt_at_once() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, inside of an event loop too."""
    _handle(_interrupt, signal.SIGINT)


def _handle(handler: Callable[..., NoReturn], *numbers: signal.Signals) -> None:
    # Elsewhere Python allows no handlers, and signals go to the main thread anyway.
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, handler)


def _interrupt(*_: object) -> NoReturn:
    # Not Python's own handler, which an event loop would replace by a cancellation.
    raise KeyboardInterrupt


def _leave(*_: object) -> NoReturn:
    try:
        sys.stdout.flush()
    except (RuntimeError, OSError):
        # It was just being written, or nobody reads it any more.
        os._exit(0)
    os._exit(0)
