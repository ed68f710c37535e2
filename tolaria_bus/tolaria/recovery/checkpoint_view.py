"""A run's checkpoints as they are on disk, for those who only look: nothing is set aside.

The run may be in progress, and remove one at any moment: what is gone meanwhile is left out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from tolaria_bus.tolaria.recovery.checkpoint_folder import (
    describe,
    kept_checkpoints,
    map_verified,
    verify,
)
from tolaria_bus.tolaria.recovery.checkpoint_info import CheckpointCorrupt, CheckpointInfo
from tolaria_bus.tolaria.recovery.journal import JournalCorrupt, read_records
from tolaria_bus.tolaria.recovery.manifest import Manifest
from tolaria_bus.tolaria.recovery.retention import Kept
from tolaria_bus.tolaria.recovery.timeline import LivePath

_ASIDE: Final = re.compile(r"(step-\d+-t\d+-s\d+)\.bad-([a-z_]+)(-\d+)?")
_TRIES: Final = 20


class NoSuchCheckpoint(ValueError):
    """A checkpoint that was named isn't there; one line says which are."""


@dataclass(frozen=True, slots=True)
class SeenCheckpoint:
    """One checkpoint.

    Attributes:
        name: Of its folder.
        live: It lies on the live timeline: no rollback undid it.
        info: What its manifest says, ``None`` if that is bad.
        manifest: The manifest itself.
        problem: Why it can't be used; empty if nothing is known against it.
    """

    name: str
    live: bool
    info: CheckpointInfo | None = None
    manifest: Manifest | None = None
    problem: str = ""


class CheckpointView:
    """The checkpoints of a run's folder.

    Args:
        run_folder: The run's folder.

    Raises:
        OSError: It can't be read.
    """

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / "checkpoints"
        self._is_live = _liveness(run_folder)

    def all(self, *, deep: bool = False) -> list[SeenCheckpoint]:
        """Every one, oldest first, those that were set aside last.

        Args:
            deep: Read every byte of the tensors; else their file's size is compared.

        Raises:
            OSError: One can't be read for a reason that isn't its own.
        """
        seen = [found for kept in self._kept() if (found := self._look(kept, deep=deep))]
        return seen + self._aside()

    def named(self, word: str = "") -> SeenCheckpoint:
        """One checkpoint, with a sound manifest.

        Args:
            word: Its name; or a step: the newest live one there; empty: the newest live one.

        Raises:
            NoSuchCheckpoint: There is none.
            CheckpointCorrupt: The one of that name can't be used.
        """
        kept = self._kept()
        if word and not word.isdecimal():
            for item in kept:
                if item.name == word:
                    manifest = verify(self.folder / word, deep=False)
                    live = self._is_live(item)
                    return SeenCheckpoint(word, live, describe(item, manifest), manifest)
            raise self._missing(f"no checkpoint {word}")
        for item in reversed(kept):
            if self._is_live(item) and (not word or item.step == int(word)):
                found = self._look(item, deep=False)
                if found is not None and not found.problem:
                    return found
        raise self._missing(f"no live checkpoint at step {word}" if word else "no live checkpoint")

    def checked(self, word: str) -> list[SeenCheckpoint]:
        """Every byte read of the checkpoint of a name, or of all at a step.

        Raises:
            NoSuchCheckpoint: There is none.
        """
        wanted = [
            item
            for item in self._kept()
            if item.name == word or (word.isdecimal() and item.step == int(word))
        ]
        seen = [found for item in wanted if (found := self._look(item, deep=True))]
        if not seen:
            raise self._missing(f"no checkpoint {word}")
        return seen

    def load(self, seen: SeenCheckpoint) -> dict[str, Tensor]:
        """The tensors of a checkpoint, every byte of them compared with its checksum.

        Raises:
            CheckpointCorrupt: It can't be used.
            OSError: It can't be read for a reason that isn't its own.
        """
        folder = self.folder / seen.name
        return map_verified(folder, verify(folder, deep=True).file)

    def _look(self, kept: Kept, *, deep: bool) -> SeenCheckpoint | None:
        live = self._is_live(kept)
        try:
            manifest = verify(self.folder / kept.name, deep=deep)
        except CheckpointCorrupt as error:
            if not (self.folder / kept.name).is_dir():
                return None
            return SeenCheckpoint(kept.name, live, problem=f"{error.reason}: {error.detail}")
        return SeenCheckpoint(kept.name, live, describe(kept, manifest), manifest)

    def _kept(self) -> tuple[Kept, ...]:
        for _ in range(_TRIES):
            # One that is removed between its name and its size is another listing.
            with contextlib.suppress(FileNotFoundError):
                return kept_checkpoints(self.folder)
        return kept_checkpoints(self.folder)

    def _aside(self) -> list[SeenCheckpoint]:
        found = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            match = _ASIDE.fullmatch(path.name)
            if match is not None:
                why = f"{match[2]}: set aside"
                with contextlib.suppress(OSError):
                    why = (path / "reason.txt").read_text().partition(" is ")[2].strip() or why
                found.append(SeenCheckpoint(path.name, live=False, problem=why))
        return found

    def _missing(self, what: str) -> NoSuchCheckpoint:
        names = ", ".join(item.name for item in self._kept()) or "none"
        return NoSuchCheckpoint(f"{what} in {self.folder}; there are: {names}")


def _liveness(run_folder: Path) -> Callable[[Kept], bool]:
    try:
        path = LivePath(read_records(run_folder))
    except (JournalCorrupt, FileNotFoundError):
        # Checkpoints can be looked at without it; the worker marks those that it undid.
        return lambda kept: kept.cut_at is None
    return lambda kept: path.is_live(kept.sequence, kept.step)
