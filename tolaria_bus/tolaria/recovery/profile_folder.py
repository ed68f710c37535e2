"""The folder of a run's traces: each there whole or not at all, few, and none at a run's expense.

A recording that is going on has a mark here, so that the next process knows what one that died has
left unfinished. A trace is the least that the disk is needed for: where it would take room that
checkpoints and the journal may want, it isn't written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson

FOLDER: Final = "profiles"
_MARK: Final = ".recording"
_SCRATCH: Final = ".saving"
_ROOM_FACTOR: Final = 3
"""Times a trace's size that must be free before it is written."""
_LEAST_FREE_BYTES: Final = 64 << 20


class TraceNotKept(RuntimeError):
    """A trace could not be written, or must not be. One line says why."""


class ProfileFolder:
    """Traces of one run.

    Args:
        run: The run's folder.
        keep: So many traces stay, the newest.
        max_bytes: A larger one isn't kept.
    """

    def __init__(self, run: Path, *, keep: int, max_bytes: int) -> None:
        self.path = run / FOLDER
        self.max_bytes = max_bytes
        self._keep = keep

    def begin(self, told: dict[str, Any]) -> None:
        """Mark that a recording begins, and what it is.

        Raises:
            OSError: It can't be written: then neither could the trace.
        """
        self.path.mkdir(exist_ok=True)
        (self.path / _MARK).write_bytes(orjson.dumps(told))

    def end(self) -> None:
        """The recording is over, and whatever was to be written is."""
        (self.path / _MARK).unlink(missing_ok=True)

    def left_over(self) -> dict[str, Any] | None:
        """What a process that died while it recorded has said of that; its remains are removed."""
        mark = self.path / _MARK
        for scratch in self.path.glob(f"{_SCRATCH}*"):
            scratch.unlink(missing_ok=True)
        try:
            told = orjson.loads(mark.read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError:
            told = {}  # It died while it wrote the mark.
        mark.unlink(missing_ok=True)
        return told if isinstance(told, dict) else {}

    def store(self, name: str, save: Callable[[Path], None], estimate: int) -> tuple[Path, int]:
        """Write a trace, durable and whole, and let the oldest ones go.

        Args:
            name: Of the file.
            save: Writes it to a path that it is given.
            estimate: About how many bytes it will be.

        Returns:
            Its path and size in bytes.

        Raises:
            TraceNotKept: There isn't room enough, or it came out too large.
            OSError: It could not be written.
        """
        scratch = self.path / _SCRATCH
        free = shutil.disk_usage(self.path).free
        if free < _LEAST_FREE_BYTES + _ROOM_FACTOR * estimate:
            raise TraceNotKept(
                f"the disk has {free >> 20} MiB free: too little for a trace of about "
                f"{estimate >> 20} MiB beside checkpoints"
            )
        try:
            save(scratch)
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            size = scratch.stat().st_size
            if size > self.max_bytes:
                raise TraceNotKept(
                    f"the trace came to {size >> 20} MiB, over profile_max_mb: ask for fewer steps"
                )
            path = self.path / name
            scratch.replace(path)
            self._sync()
        finally:
            for left in self.path.glob(f"{_SCRATCH}*"):
                left.unlink(missing_ok=True)
        self._let_go()
        return path, size

    def _sync(self) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _let_go(self) -> None:
        traces = sorted(self.path.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for old in traces[: -self._keep]:
            old.unlink(missing_ok=True)
