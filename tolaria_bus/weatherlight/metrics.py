"""What Weatherlight knows, for Prometheus; counted where it happens, read when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from tolaria_bus.oona.alone import OpenPublisher
from tolaria_bus.weatherlight.judging import Health
from tolaria_bus.weatherlight.keeper import Keeper
from tolaria_bus.weatherlight.machine import MachineWatch

_NAME: Final = "weatherlight"
_Value = Callable[[Keeper], float]


class WeatherlightMetrics(Collector):
    """Registers itself.

    Args:
        registry: Where.
        keepers: Of all runs.
        machine: What the machine has left.
        publisher: Sends what we tell.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        keepers: Sequence[Keeper],
        machine: MachineWatch,
        publisher: OpenPublisher,
    ) -> None:
        self._keepers = keepers
        self._machine = machine
        self._publisher = publisher
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """All of it, now."""
        yield from self._workers()
        yield from self._counts()
        yield from self._resources()
        outbox, publisher = self._publisher.outbox, self._publisher.publisher
        waiting = GaugeMetricFamily(f"{_NAME}_outbox_packets", "Told and not yet delivered.")
        waiting.add_metric([], outbox.depth)
        yield waiting
        connected = GaugeMetricFamily(
            f"{_NAME}_connected", "1: the last attempt reached the server.", labels=["connection"]
        )
        for name, up in publisher.connected.items():
            connected.add_metric([name], float(up))
        yield connected

    def _workers(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            f"{_NAME}_worker_state", "1 for the state that it is in.", labels=["run", "state"]
        )
        for keeper in self._keepers:
            for health in Health:
                state.add_metric(
                    [keeper.run_id, health.value], float(keeper.condition.health is health)
                )
        yield state
        yield self._gauge("worker_step", "The newest step.", lambda keeper: keeper.condition.step)
        yield self._gauge(
            "worker_step_seconds",
            "What its steps took lately, without validation.",
            lambda keeper: keeper.condition.step_seconds,
        )
        yield self._gauge(
            "worker_quiet_seconds", "Since it last got on.", lambda keeper: keeper.condition.quiet
        )
        yield self._gauge("worker_given_up", "1: it isn't started again.", lambda k: k.given_up)
        resident = GaugeMetricFamily(
            f"{_NAME}_worker_resident_bytes", "Memory of its process.", labels=["run"]
        )
        for keeper in self._keepers:
            process = keeper.process
            if process is not None:
                try:
                    resident.add_metric(
                        [keeper.run_id], psutil.Process(process.pid).memory_info().rss
                    )
                except psutil.NoSuchProcess:
                    continue
        yield resident

    def _counts(self) -> Iterator[Metric]:
        yield self._counter("restarts", "Restarts after a death.", lambda k: k.restarts.total)
        yield self._counter("hangs", "How often it hung.", lambda k: k.condition.hangs)
        yield self._counter(
            "signals_relayed", "Emergencies sent for it.", lambda k: k.relay.relayed
        )
        overruns = CounterMetricFamily(
            f"{_NAME}_deadline_overruns", "Deadlines overrun.", labels=["run", "deadline"]
        )
        for keeper in self._keepers:
            for name, count in sorted(keeper.relay.overruns.items()):
                overruns.add_metric([keeper.run_id, name], count)
        yield overruns

    def _resources(self) -> Iterator[Metric]:
        used = GaugeMetricFamily(
            f"{_NAME}_used_ratio", "Share that is used, 0 to 1.", labels=["kind", "what"]
        )
        for reading in self._machine.readings:
            used.add_metric([reading.kind, reading.what], reading.share)
        yield used
        celsius = GaugeMetricFamily(f"{_NAME}_gpu_celsius", "Temperature.", labels=["gpu"])
        busy = GaugeMetricFamily(f"{_NAME}_gpu_utilization", "0 to 1.", labels=["gpu"])
        for gpu in self._machine.gpus:
            celsius.add_metric([gpu.name], gpu.celsius)
            busy.add_metric([gpu.name], gpu.utilization)
        yield celsius
        yield busy

    def _gauge(self, name: str, text: str, value: _Value) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"{_NAME}_{name}", text, labels=["run"])
        _fill(family, self._keepers, value)
        return family

    def _counter(self, name: str, text: str, value: _Value) -> CounterMetricFamily:
        family = CounterMetricFamily(f"{_NAME}_{name}", text, labels=["run"])
        _fill(family, self._keepers, value)
        return family


def _fill(
    family: GaugeMetricFamily | CounterMetricFamily, keepers: Sequence[Keeper], value: _Value
) -> None:
    for keeper in keepers:
        family.add_metric([keeper.run_id], float(value(keeper)))
