"""A trace of the training thread by torch's profiler, with our own phases as ranges in it.

Only while one is recorded is there anything of this in a step: the ranges hang on the phase clock
as a listener. Profiling reads and times; no operator computes anything else for it, and no
generator is drawn from. What is recorded stays in memory until it is saved, some hundreds of bytes
for each operator that ran.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tolaria_bus.tolaria.engine.phases import PhaseClock

PREFIX = "tolaria."
"""How the names of our ranges begin."""


class Tracing:
    """One recording: started and stopped on the training thread, saved on any.

    Args:
        clock: Whose phases become ranges.
        device: On CUDA its kernels are recorded as well.
    """

    def __init__(self, clock: PhaseClock, device: torch.device) -> None:
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._clock = clock
        self._profile = profile(activities=activities, profile_memory=True, acc_events=False)
        self._range: record_function | None = None

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: Another profiler is on; it would lose what it has.
        """
        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            raise RuntimeError("another profiler is on")
        self._profile.start()
        self._clock.listeners += (self._enters,)

    def stop(self) -> None:
        """End; takes some microseconds for each event.

        Raises:
            RuntimeError: Somebody else has stopped the profiler.
        """
        self._clock.listeners = tuple(
            each for each in self._clock.listeners if each != self._enters
        )
        self._leave()
        self._profile.stop()

    @property
    def events(self) -> Iterable[Any]:
        """What was recorded, by start: kineto's events. After :meth:`stop`."""
        # torch's own list of it takes ten times as long to make.
        results: Any = self._profile.profiler
        found: Iterable[Any] = results.kineto_results.events()
        return found

    @property
    def count(self) -> int:
        """How many events were recorded. After :meth:`stop`."""
        return len(self.events)  # type: ignore[arg-type]

    def save(self, path: Path) -> None:
        """Write a Chrome trace; holds the interpreter's lock.

        Raises:
            OSError: It could not be written.
        """
        self._profile.export_chrome_trace(str(path))
        if not path.exists():
            # The profiler's library says so on standard error alone, and leaves what it has.
            raise OSError("the trace could not be written whole: the disk is full, or refuses")

    def _enters(self, phase: str) -> None:
        self._leave()
        if phase:
            self._range = record_function(PREFIX + phase)
            self._range.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
