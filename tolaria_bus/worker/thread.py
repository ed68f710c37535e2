"""The training thread: one, dedicated, daemon.

A thread of an executor pool would be joined at interpreter exit, and a training step that never
returns would then hold the process for ever. A daemon thread is left behind instead: it is ended
only by the mailbox's stop flag, or with the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class TrainingThread(Generic[T]):
    """Runs one function on its own thread; its end can be awaited from the event loop.

    Args:
        work: What to run; its result or exception is handed to :meth:`result`.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[T] = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, name="training", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Its result is there."""
        return self._done.done()

    async def result(self) -> T:
        """Wait for the end. Cancelling this wait doesn't touch the thread.

        Raises:
            Exception: What the work raised.
        """
        return await asyncio.shield(self._done)

    def _main(self) -> None:
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - handed over whole, raised in result()
            self._loop.call_soon_threadsafe(self._fail, error)
        else:
            self._loop.call_soon_threadsafe(self._succeed, result)

    def _succeed(self, result: T) -> None:
        if not self._done.done():
            self._done.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self._done.done():
            self._done.set_exception(error)
