"""Watching what the machine has left, every few seconds, and telling before it is too late."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import structlog

from tolaria_bus.weatherlight.gpus import Gpu, NoGpus, Nvml, gpus
from tolaria_bus.weatherlight.resources import Reading, Watermarks, disks, memory
from tolaria_bus.weatherlight.telling import Teller

EVERY: Final = timedelta(seconds=5)

_HOT_CELSIUS: Final = 90.0
"""Where a GPU doesn't say at what temperature it slows itself down."""
_COOLER: Final = 5.0
"""So many degrees before it does, it is hot; so many below that, it isn't any more."""


class MachineWatch:
    """Watches memory, the disks of runs, and GPUs.

    Args:
        folders: Of the runs.
        teller: Tells.
        memory_limit: Share of memory, a GPU's too, from which on it is told.
        disk_limit: Likewise of a disk.
        every: How often it is looked at.

    Attributes:
        readings: The newest ones.
        gpus: The newest ones; empty where there are none to be seen.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        teller: Teller,
        *,
        memory_limit: float,
        disk_limit: float,
        every: timedelta = EVERY,
    ) -> None:
        self.readings: list[Reading] = []
        self.gpus: list[Gpu] = []
        self._folders = folders
        self._teller = teller
        self._every = every.total_seconds()
        self._memory = Watermarks(memory_limit)
        self._disk = Watermarks(disk_limit)
        self._hot: set[str] = set()
        self._lost: set[int] = set()

    async def run(self) -> None:
        """Watch until cancelled."""
        with ExitStack() as stack:
            library: Nvml | None = None
            try:
                library = stack.enter_context(gpus())
            except NoGpus as reason:
                structlog.get_logger().info("no GPUs are watched", reason=str(reason))
            while True:
                # A driver or a network disk that hangs holds a thread, and nothing else.
                await anyio.to_thread.run_sync(partial(self._read, library), abandon_on_cancel=True)
                self.judge()
                await anyio.sleep(self._every)

    def judge(self) -> None:
        """Tell what the newest readings are worth telling."""
        for reading in self.readings:
            marks = self._disk if reading.kind == "disk" else self._memory
            level = marks.crossed(reading)
            if level:
                left = (reading.total - reading.used) / (1 << 30)
                self._teller.alert(
                    "",
                    f"{reading.kind}_low",
                    f"{reading.kind} {reading.what}".rstrip()
                    + f": {reading.share:.0%} used, {left:.3g} GiB left",
                    critical=level > 1,
                    # What tells it from the same of another disk or GPU.
                    reason=reading.what,
                )
        for gpu in self.gpus:
            self._judge_heat(gpu)

    def _read(self, library: Nvml | None) -> None:
        found = [memory(), *disks(self._folders)]
        seen: list[Gpu] = []
        if library is not None:
            seen = library.read()
            found += [gpu.memory for gpu in seen]
            for index in library.lost.keys() - self._lost:
                self._teller.alert("", "gpu_lost", library.lost[index], reason=f"gpu{index}")
            self._lost = set(library.lost)
        self.readings, self.gpus = found, seen

    def _judge_heat(self, gpu: Gpu) -> None:
        hot = (gpu.slow_down_celsius or _HOT_CELSIUS) - _COOLER
        if gpu.celsius >= hot and gpu.name not in self._hot:
            self._hot.add(gpu.name)
            self._teller.alert(
                "",
                "gpu_hot",
                f"{gpu.name}: {gpu.celsius:.0f} °C; it slows down at {hot + _COOLER:.0f} °C",
                reason=gpu.name,
            )
        elif gpu.celsius < hot - _COOLER:
            self._hot.discard(gpu.name)
