"""One Weatherlight for a run: a lock on a file in its folder, which the kernel gives back."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_NAME: Final = "weatherlight.lock"


class RunWatched(RuntimeError):
    """Another Weatherlight watches a run; one line names it."""


@contextmanager
def claimed(run: str, folder: Path) -> Iterator[None]:
    """Be the one that watches a run.

    Raises:
        RunWatched: Another process is.
        OSError: The folder can't be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 32, 0).decode("ascii", "replace").strip() or "another"
            raise RunWatched(f"run {run} is watched by weatherlight process {holder}") from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)
