"""The lock that keeps a run's folder to one process.

It is ``flock`` on a file: the kernel gives it back however its holder dies, so there are no stale
locks and nothing to clean up. It belongs to the open file, which a forked child (a data loader's
worker) would share and keep for as long as it lives; so a child lets go of it at the fork.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

LOCK_NAME = "lock"


class RunLocked(RuntimeError):
    """Another process works on this run's folder. The message is one line for people.

    Attributes:
        folder: The folder.
        pid: The holder's process id, ``None`` if it could not be read.
    """

    def __init__(self, folder: Path, pid: int | None) -> None:
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(f"run folder {folder} is in use by {holder}")
        self.folder = folder
        self.pid = pid


class RunLock:
    """An exclusive lock on a folder, held from construction to :meth:`release`.

    Args:
        folder: An existing folder; the file ``lock`` in it is locked and gets our process id.

    Raises:
        RunLocked: Another process (or another lock of this one) holds it.
        OSError: The file can't be opened or written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunLocked(folder, _read_pid(self._fd)) from None
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            self._close()
            raise
        _held.add(self)

    @property
    def held(self) -> bool:
        """Is it ours? ``False`` after :meth:`release` and in a forked child."""
        return self._fd >= 0

    def release(self) -> None:
        """Give the lock up; doing so twice is fine."""
        _held.discard(self)
        self._close()

    def _close(self) -> None:
        # Closing, not LOCK_UN: in a forked child LOCK_UN would free the parent's lock.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _read_pid(fd: int) -> int | None:
    with contextlib.suppress(ValueError):
        return int(os.pread(fd, 32, 0))
    return None  # Empty: the holder has just taken the lock and not written yet.


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)
