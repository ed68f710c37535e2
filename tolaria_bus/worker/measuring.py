"""What a worker measures of its bus, where metrics are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.registry import CollectorRegistry
from redis.asyncio import Redis

from tolaria_bus.oona.connection import ServerClock
from tolaria_bus.oona.consumer import Consumer
from tolaria_bus.oona.events import OnEvent
from tolaria_bus.oona.metrics import BusMetrics
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.sampling import Sampler
from tolaria_bus.oona.streams import Streams, dead_letters_of


def measure(
    registry: CollectorRegistry,
    client: Redis,
    streams: Streams,
    run: str,
    *,
    consumers: Sequence[Consumer],
    publisher: Publisher,
    outbox: Outbox,
    clock: ServerClock,
    on_event: OnEvent,
) -> Sampler:
    """Register the metrics of a worker's bus; the sampler they need, for the caller to run."""
    shared = [streams.fleet_control, streams.emergency]
    sampler = Sampler(
        client,
        [
            streams.control(run),
            streams.state(run),
            streams.telemetry(run),
            streams.outcomes(run),
            streams.reports(run),
            streams.dead(run),
            *shared,
            *map(dead_letters_of, shared),
        ],
        clock=clock,
        on_event=on_event,
    )
    BusMetrics(registry, consumers=consumers, publisher=publisher, outbox=outbox, sampler=sampler)
    return sampler
