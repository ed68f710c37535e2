"""Where the time of training goes: how long each phase takes, always, on the training thread.

A run is in exactly one phase at a time; entering one ends the one before, so that the phases' times
add up to the whole. Entering costs one look at the monotonic clock and two appends; they are sorted
into histograms when somebody wants to publish them. Nothing waits for the device: on CUDA a
phase's time here is what queueing its work took, and what the device took is ``device_clock``'s.

The histogram's buckets are those of HDR histograms (http://hdrhistogram.org): four to each power of
two, so that a value is known to 25 %; exact are count, sum and maximum.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

DATA: Final = "data"
PREPARE: Final = "prepare"
FORWARD: Final = "forward"
BACKWARD: Final = "backward"
AGGREGATION: Final = "aggregation"
SIDE: Final = "side"
OPTIMIZER: Final = "optimizer"
PREFETCH: Final = "prefetch"
LOSS: Final = "loss"
FENCE: Final = "fence"
HELD: Final = "held"
SEEDS: Final = "seeds"
TELEMETRY: Final = "telemetry"
SNAPSHOT: Final = "snapshot"
CHECKPOINT: Final = "checkpoint"
VALIDATION: Final = "validation"
TAMIYO: Final = "tamiyo"
BOUNDARY: Final = "boundary"

PHASES: Final = {
    DATA: "waiting for the loader's next batch",
    PREPARE: "seeding, clearing gradients, the batch's copy to the device",
    FORWARD: "the job's loss",
    BACKWARD: "its gradients",
    AGGREGATION: "one gradient of several tasks', where a conflict handler is on",
    SIDE: "seeds that learn beside the host",
    OPTIMIZER: "clipping, learning rates, the optimizer's step",
    PREFETCH: "on CUDA, drawing the next batch while the device works on this one",
    LOSS: "the loss of the step before: on CUDA, the wait for the device",
    FENCE: "commands",
    HELD: "paused or halted",
    SEEDS: "what is due in seeds' lives",
    TELEMETRY: "building metrics",
    SNAPSHOT: "the copy of the state in memory",
    CHECKPOINT: "the copy of the state that is then written",
    VALIDATION: "the held-out data",
    TAMIYO: "asking Tamiyo; in blocking mode, the wait for its answer",
    BOUNDARY: "the rest of an epoch's end",
}
"""Every phase, in the order of a table, and what it is."""

_PER_OCTAVE: Final = 4
_FOLD_AT: Final = 4096
"""Values that are kept unsorted at most: a quarter of a megabyte."""
_PLACES: Final = {phase: place for place, phase in enumerate(("", *PHASES))}


class Times:
    """The durations of one phase.

    Attributes:
        count: How many.
        total_ns: All together.
        longest_ns: The longest.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total_ns = 0
        self.longest_ns = 0
        self._raw = array("q")
        self._buckets = np.zeros(64 * _PER_OCTAVE, dtype=np.int64)

    def add(self, nanoseconds: int) -> None:
        """One more."""
        self._raw.append(nanoseconds)
        if len(self._raw) >= _FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Sort what was added into the buckets."""
        raw, self._raw = self._raw, array("q")
        if raw:
            self.add_all(np.frombuffer(raw, dtype=np.int64))

    def add_all(self, nanoseconds: np.ndarray) -> None:
        """Sort these into the buckets: int64, at least one."""
        values = np.maximum(nanoseconds, 0)
        self.count += len(values)
        self.total_ns += int(values.sum())
        self.longest_ns = max(self.longest_ns, int(values.max()))
        self._buckets += np.bincount(bucket(values), minlength=len(self._buckets))

    def buckets(self) -> Iterator[tuple[int, int]]:
        """Upper end in nanoseconds and count of each bucket that holds something, rising."""
        for place in np.flatnonzero(self._buckets).tolist():
            yield upper_end(place), int(self._buckets[place])


def bucket(nanoseconds: np.ndarray) -> np.ndarray:
    """The bucket of each value (int64, from 0): 4 to an octave; from 0 to 3 one for each value."""
    # Exact: a float64 holds 53 bits, and below only the highest three count; 2**53 ns is 104 days.
    octave = np.frexp(np.maximum(nanoseconds, 1).astype(np.float64))[1].astype(np.int64) - 1
    shift = np.maximum(octave - 2, 0)
    place: np.ndarray = np.where(
        nanoseconds < _PER_OCTAVE,
        nanoseconds,
        (octave - 1) * _PER_OCTAVE + (nanoseconds >> shift) - _PER_OCTAVE,
    )
    return place


def upper_end(place: int) -> int:
    """The least value, in nanoseconds, that is in no bucket up to this one."""
    octave, part = divmod(place, _PER_OCTAVE)
    return place + 1 if octave == 0 else (_PER_OCTAVE + part + 1) << (octave - 1)


class PhaseClock:
    """Knows in which phase the training thread is. Its own only.

    Args:
        monotonic_ns: The clock.

    Attributes:
        listeners: Told of each phase as it begins.
    """

    def __init__(self, monotonic_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.listeners: tuple[Callable[[str], None], ...] = ()
        self._times = {phase: Times() for phase in PHASES}
        self._monotonic_ns = monotonic_ns
        self._phase = ""
        # Two lists of what is there already, and no object for each: nothing for the collector.
        self._entered: list[str] = []
        self._stamps: list[int] = []

    def enter(self, phase: str) -> str:
        """Begin a phase, which ends the one before, and return that one's name."""
        stamps, before = self._stamps, self._phase
        self._phase = phase
        stamps.append(self._monotonic_ns())
        self._entered.append(phase)
        if self.listeners:
            for listener in self.listeners:
                listener(phase)
        if len(stamps) >= _FOLD_AT:
            self._fold()
        return before

    def stop(self) -> None:
        """End the phase, and begin none."""
        self.enter("")

    @property
    def times(self) -> dict[str, Times]:
        """The durations of all phases that have ended, by phase."""
        self._fold()
        return self._times

    def _fold(self) -> None:
        entered, stamps = self._entered, self._stamps
        durations = np.diff(np.array(stamps, dtype=np.int64))
        places = np.array([_PLACES[phase] for phase in entered[:-1]], dtype=np.int64)
        for phase, times in self._times.items():
            values = durations[places == _PLACES[phase]]
            if len(values):
                times.add_all(values)
        # The phase that goes on.
        del entered[:-1], stamps[:-1]
