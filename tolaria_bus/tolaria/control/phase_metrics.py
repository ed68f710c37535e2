"""The phases' times as metrics: a histogram for each phase, every few seconds and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch

from tolaria_bus.leyline import Histogram, MetricPoint
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.engine.device_clock import DeviceClock
from tolaria_bus.tolaria.engine.phases import PhaseClock, Times

NAME: Final = "tolaria.phase_ms"
SECONDS: Final = 5.0
"""Between two packets: some kilobytes, not for every step's metrics."""
_MS: Final = 1e6


class PhaseMetrics:
    """Publishes what the clocks have counted since the process began. Training thread only.

    Args:
        clock: Of the training thread.
        telemetry: Publishes.
        device: Where the model is; on CUDA its own time of a step's phases is told as well.
        monotonic: Seconds.
    """

    def __init__(
        self,
        clock: PhaseClock,
        telemetry: Telemetry,
        device: torch.device,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._device = DeviceClock(device) if device.type == "cuda" else None
        self._monotonic = monotonic
        self._next = monotonic() + SECONDS
        if self._device is not None:
            clock.listeners += (self._device.enters,)

    def due(self) -> None:
        """Publish if it is time to; asked whenever step metrics are."""
        if self._device is not None:
            self._device.read()
        if self._monotonic() >= self._next:
            self.publish()

    def publish(self) -> None:
        """Publish now."""
        self._next = self._monotonic() + SECONDS
        points = [*_points(self._clock.times, "host")]
        if self._device is not None:
            points += _points(self._device.times, "device")
        if points:
            self._telemetry.publish(points)


def _points(times: Mapping[str, Times], clock: str) -> Iterator[MetricPoint]:
    for phase, taken in times.items():
        taken.fold()
        if not taken.count:
            continue
        ends, counts = zip(*taken.buckets(), strict=True)
        yield MetricPoint(
            name=NAME,
            value=taken.total_ns / taken.count / _MS,
            unit="ms",
            attributes={"phase": phase, "clock": clock},
            histogram=Histogram(
                count=taken.count,
                sum=taken.total_ns / _MS,
                max=taken.longest_ns / _MS,
                bounds=[end / _MS for end in ends],
                counts=counts,
            ),
        )
