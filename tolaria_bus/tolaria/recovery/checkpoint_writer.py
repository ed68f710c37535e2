"""Writes checkpoints behind the training: one thread, one at a time, in order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Saves(Protocol):
    """Where checkpoints go: a :class:`~.checkpoints.CheckpointStore`."""

    def save(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        *,
        pin: bool = False,
    ) -> str:
        """Make a checkpoint durable and return its name."""


class _Job(NamedTuple):
    name: str
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    pin: bool
    done: Future[str]


class CheckpointWriter:
    """A daemon thread that saves what is submitted to it.

    Args:
        store: Saves them.
    """

    def __init__(self, store: Saves) -> None:
        self._store = store
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._state = threading.Condition()
        self._pending = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """How many were submitted and are neither durable nor failed."""
        return self._pending

    def submit(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        *,
        pin: bool = False,
    ) -> Future[str]:
        """Save a checkpoint in the background; costs microseconds here.

        Args:
            name: As :meth:`~.checkpoints.CheckpointStore.save` wants it.
            tensors: Private copies: nobody may change them before the future is done.
            meta: Likewise.
            pin: Retention keeps it.

        Returns:
            A future with the name once it is durable and verified, or with the error. Its callbacks
            run in the writer's thread.

        Raises:
            RuntimeError: The writer is closed.
        """
        done: Future[str] = Future()
        with self._state:
            if self._closed:
                raise RuntimeError("the checkpoint writer is closed")
            self._pending += 1
            self._jobs.put(_Job(name, tensors, meta, pin, done))
        return done

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing is pending, at most ``timeout`` seconds; tell whether that is so."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._state:
            while self._pending:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._state.wait(left)
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Take nothing more and wait for what is pending, at most ``timeout`` seconds.

        Returns:
            Whether everything was finished. What wasn't goes on until the process ends; half a
            checkpoint never gets a checkpoint's name.
        """
        with self._state:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        finished = self.drain(timeout)
        if finished and threading.current_thread() is not self._thread:
            self._thread.join()
        return finished

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._save(job)
            del job  # Or its tensors would stay until the next one comes.

    def _save(self, job: _Job) -> None:
        try:
            if not job.done.set_running_or_notify_cancel():
                return
            try:
                name = self._store.save(job.name, job.tensors, job.meta, pin=job.pin)
            except BaseException as error:  # noqa: BLE001 - it is the future's, whatever it is
                job.done.set_exception(error)
            else:
                job.done.set_result(name)
        finally:
            with self._state:
                self._pending -= 1
                self._state.notify_all()
