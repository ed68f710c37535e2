"""What a Tamiyo counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.registry import CollectorRegistry

from tolaria_bus.leyline import AdaptationCommand, CommandType
from tolaria_bus.leyline.codec import short_name

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.012, 0.05, 0.2, 1.0, 2.0)


class TamiyoMetrics:
    """Counts answers.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answers = Counter(
            "tamiyo_answers", "Answers by what they say.", ["command"], registry=registry
        )
        self._seconds = Histogram(
            "tamiyo_answer_seconds",
            "From a packet in hand to its answer in the outbox.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._runs = Gauge("tamiyo_runs", "Runs that are watched.", registry=registry)

    def answered(self, command: AdaptationCommand, seconds: float) -> None:
        """One more answer."""
        self._answers.labels(short_name(CommandType, command.command_type)).inc()
        self._seconds.observe(seconds)

    def watched(self, runs: int) -> None:
        """So many runs are watched."""
        self._runs.set(runs)
