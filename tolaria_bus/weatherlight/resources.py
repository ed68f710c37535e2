"""What runs out on a machine before a worker notices: memory, disk, the memory of a GPU.

Alerts come while there is time left: HIGH from the limit on, CRITICAL half-way from there to full.
They are told once, and again only after it was clearly better meanwhile.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_CGROUP: Final = Path("/sys/fs/cgroup")
_BETTER: Final = 0.02
"""A share so much below its limit is clearly better."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How much of something is used.

    Attributes:
        kind: ``memory``, ``disk``, ``gpu_memory``.
        what: Which: empty for memory, a folder, a GPU's name.
        used: Bytes.
        total: Bytes.
    """

    kind: str
    what: str
    used: int
    total: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.used / self.total if self.total else 0.0


def memory(cgroup: Path = _CGROUP) -> Reading:
    """This machine's memory, or that of the container where it has less."""
    found = psutil.virtual_memory()
    whole = Reading("memory", "", found.total - found.available, found.total)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        # What the kernel gives back when somebody needs it.
        cache = _inactive_file(cgroup)
    except (OSError, ValueError):
        # No container, or one without a limit: its file says "max".
        return whole
    contained = Reading("memory", "", max(used - cache, 0), limit)
    return max(whole, contained, key=lambda reading: reading.share)


def disks(folders: Iterable[Path]) -> Iterator[Reading]:
    """The disks of these folders, each once; what isn't there yet is left out."""
    seen = set()
    for folder in folders:
        try:
            device = folder.stat().st_dev
            found = shutil.disk_usage(folder)
        except OSError:
            continue
        if device not in seen:
            seen.add(device)
            # As df has it: what root alone may use isn't there for others.
            yield Reading("disk", str(folder), found.used, found.used + found.free)


class Watermarks:
    """Which readings are worth an alert.

    Args:
        limit: Share used from which one is, 0 to 1.
    """

    def __init__(self, limit: float) -> None:
        self._limits = (limit, (1.0 + limit) / 2)
        self._told: dict[tuple[str, str], int] = {}

    def crossed(self, reading: Reading) -> int:
        """0: nothing new to tell; 1: it got above the limit; 2: half-way from there to full."""
        key = reading.kind, reading.what
        told = self._told.get(key, 0)
        level = sum(reading.share >= limit for limit in self._limits)
        if level > told:
            self._told[key] = level
            return level
        while told > level and reading.share < self._limits[told - 1] - _BETTER:
            told -= 1
        self._told[key] = told
        return 0


def _inactive_file(cgroup: Path) -> int:
    for line in (cgroup / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0
