"""Checkpoints: whole states of a run on disk, each in a folder of its own.

    checkpoints/step-00001200-t1-s345/tensors.safetensors
                                      manifest.json
                                      pinned    (if retention must keep it)
                                      cut       (if a rollback undid it)

The name says step, timeline, and the last journal record that the state contains. A checkpoint is
written as ``NAME.tmp``, synced, read back and compared, and only then renamed: what has a
checkpoint's name is whole. Damage that comes later is found by checksums over every byte when it is
loaded; such a checkpoint is renamed to ``NAME.bad-REASON`` with a line in ``reason.txt``, and the
one before it is used. Nothing is pickled.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tolaria_bus.tolaria.recovery.checkpoint_folder import (
    CUT,
    MANIFEST,
    PINNED,
    describe,
    kept_checkpoints,
    map_verified,
    set_aside,
    verify,
    write_checkpoint,
    write_durably,
)
from tolaria_bus.tolaria.recovery.checkpoint_info import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointInfo,
    LoadedCheckpoint,
    checkpoint_name,
    is_checkpoint_name,
    parse_name,
)
from tolaria_bus.tolaria.recovery.checkpoint_writer import CheckpointWriter
from tolaria_bus.tolaria.recovery.disk_helper import Disk, Here
from tolaria_bus.tolaria.recovery.retention import dropped
from tolaria_bus.tolaria.recovery.sync_folder import sync_folder

__all__ = [
    "CheckpointCorrupt",
    "CheckpointFailed",
    "CheckpointInfo",
    "CheckpointStore",
    "CheckpointWriter",
    "LoadedCheckpoint",
    "checkpoint_name",
]

IsLive = Callable[[int, int], bool]
"""Is the state live that contains records up to this sequence and has done so many steps?"""

OnEvent = Callable[[str, dict[str, str]], None]
"""Takes an event's name and its details."""


class CheckpointStore:
    """The checkpoints of one run. Any thread may use it; one process may write.

    Args:
        folder: Made with the first checkpoint.
        keep: Retention keeps so many, at least 1, beside pinned ones.
        max_bytes: Retention removes the oldest beyond this total, but never the newest.
        on_event: Told, from whatever thread, of ``checkpoint_set_aside`` and
            ``checkpoint_not_removed`` with strings for people.
        clock_ns: Wall clock, for people only.

    Attributes:
        folder: Where they are.
        disk: Does the bulk of the writing; may be replaced by whoever calls :meth:`save`.
        on_event: As given.

    Raises:
        ValueError: ``keep`` is below 1.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 5,
        *,
        max_bytes: int | None = None,
        on_event: OnEvent | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint must be kept")
        self.folder = folder
        self.disk: Disk = Here()
        self._keep = keep
        self._max_bytes = max_bytes
        self.on_event = on_event or (lambda _name, _details: None)
        self._clock_ns = clock_ns
        self._lock = threading.RLock()  # Over names; not held while a checkpoint is written.
        self._swept = False

    def save(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        *,
        pin: bool = False,
    ) -> str:
        """Make a checkpoint durable, verify it, apply retention. A good one of its name stays.

        Args:
            name: From :func:`checkpoint_name`.
            tensors: Of any dtype and stride, on any device; they must not change meanwhile.
            meta: The rest of the state: JSON values; NaN, infinities and big integers too.
            pin: Retention keeps it.

        Returns:
            Its name.

        Raises:
            CheckpointFailed: Disk full, an I/O error, a tensor that can't be stored.
            ValueError: The name isn't a checkpoint's.
        """
        identity = parse_name(name)
        temporary = self.folder / f"{name}.tmp"
        try:
            if not self._swept:
                self._sweep()
            if not self._is_good(name):
                write_checkpoint(
                    temporary,
                    identity,
                    tensors,
                    meta,
                    written_at_ns=self._clock_ns(),
                    pin=pin,
                    disk=self.disk,
                )
                with self._lock:
                    temporary.rename(self.folder / name)
                    sync_folder(self.folder)
            elif pin:
                self.pin(name)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise CheckpointFailed(f"checkpoint {self.folder / name}: {why}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._retain(name)
        return name

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Verify a checkpoint and map it: tensors in the order they were given, and ``meta``.

        The tensors are private and at any address; copy them into the model's own (see
        :func:`~.tensor_file.map_tensors`).

        Raises:
            CheckpointCorrupt: It can't be used, and was set aside.
            OSError: It can't be read for reasons that aren't its own, such as permissions.
        """
        with self._lock:
            try:
                loaded = self._load(name, read=True)
            except CheckpointCorrupt as error:
                self._set_aside(error)
                raise
        return loaded.tensors, loaded.meta

    def newest(
        self, is_live: IsLive | None = None, *, load: bool = True
    ) -> LoadedCheckpoint | None:
        """The newest good checkpoint on the live path; bad ones on the way are set aside.

        Args:
            is_live: Given a checkpoint's sequence and step, whether its state counts
                (:meth:`~.timeline.LivePath.is_live`); all do if it is left out.
            load: Without, no tensor is read: only manifests and sizes are checked.

        Raises:
            OSError: As for :meth:`load`.
        """
        with self._lock:
            for kept in reversed(kept_checkpoints(self.folder)):
                if is_live is not None and not is_live(kept.sequence, kept.step):
                    continue
                try:
                    return self._load(kept.name, read=load)
                except CheckpointCorrupt as error:
                    self._set_aside(error)
        return None

    def list(self) -> tuple[CheckpointInfo, ...]:
        """Checkpoints with a sound manifest, oldest first; tensors aren't looked at."""
        found = []
        with self._lock:
            for kept in kept_checkpoints(self.folder):
                try:
                    found.append(describe(kept, verify(self.folder / kept.name, deep=False)))
                except CheckpointCorrupt:
                    continue  # Whoever loads it sets it aside: looking changes nothing.
        return tuple(found)

    def has(self, name: str) -> bool:
        """Is there a checkpoint of this name? It may have been damaged since it was written."""
        return (self.folder / name / MANIFEST).is_file()

    def pin(self, name: str) -> None:
        """Keep a checkpoint until it is removed by hand. Raises OSError."""
        write_durably(self.folder / name / PINNED, b"")

    def mark_cut(self, is_live: IsLive, cut_sequence: int) -> tuple[str, ...]:
        """Mark checkpoints that a rollback undid; they stay for one more retention cycle.

        That is: until ``keep`` checkpoints of the new timeline are there.

        Args:
            is_live: As for :meth:`newest`, after the cut.
            cut_sequence: The cut's journal record.

        Returns:
            The names that are newly marked.

        Raises:
            OSError: A mark can't be written.
        """
        with self._lock:
            marked = [
                kept.name
                for kept in kept_checkpoints(self.folder)
                if kept.cut_at is None and not is_live(kept.sequence, kept.step)
            ]
            for name in marked:
                write_durably(self.folder / name / CUT, str(cut_sequence).encode())
        return tuple(marked)

    def _load(self, name: str, *, read: bool) -> LoadedCheckpoint:
        folder = self.folder / name
        manifest = verify(folder, deep=read)
        tensors = map_verified(folder, manifest.file) if read else {}
        return LoadedCheckpoint(name, tensors, manifest.meta, manifest.sha256)

    def _is_good(self, name: str) -> bool:
        with self._lock:
            if not (self.folder / name).exists():
                return False
            try:
                verify(self.folder / name, deep=True)
            except CheckpointCorrupt as error:
                self._set_aside(error)
                return False
            return True

    def makes_room(self, live: int) -> bool:
        """May the next checkpoint take the place of one of so many live ones?"""
        return live >= self._keep or self._max_bytes is not None

    def _set_aside(self, bad: CheckpointCorrupt) -> None:
        if bad.reason != "missing":
            self.on_event("checkpoint_set_aside", set_aside(self.folder / bad.name, bad))

    def _retain(self, saved: str) -> None:
        with self._lock:
            try:
                kept = kept_checkpoints(self.folder)
                for name in dropped(
                    kept, keep=self._keep, max_bytes=self._max_bytes, protect=saved
                ):
                    # Renamed first: half a checkpoint must never have a checkpoint's name.
                    going = self.folder / f"{name}.old"
                    (self.folder / name).rename(going)
                    shutil.rmtree(going)
            except OSError as error:
                self.on_event("checkpoint_not_removed", {"detail": str(error)})

    def _sweep(self) -> None:
        # What a process left that died while it wrote or removed one.
        self.folder.mkdir(parents=True, exist_ok=True)
        sync_folder(self.folder.parent)
        for path in self.folder.iterdir():
            if path.suffix in {".tmp", ".old"} and is_checkpoint_name(path.stem):
                shutil.rmtree(path)
        self._swept = True
