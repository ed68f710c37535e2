"""The bus as Prometheus sees it: what was counted, turned into metrics when somebody asks.

Nothing here is in the way of an entry or a packet. The counts are plain numbers of those who do
the work, the server's own are sampled (see ``sampling``), and a scrape reads them from whatever
thread it comes in. Every metric is described in ``docs/metrics.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from tolaria_bus.leyline import MessagePriority
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.oona.consumer import Consumer
from tolaria_bus.oona.counts import BOUNDS, Latency
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.publisher import Publisher
from tolaria_bus.oona.sampling import Sampler

STALLED: Final = timedelta(seconds=30)
"""A read loop that hasn't gone round for so long stands still. The longest honest round is two
attempts to connect to a server that hangs, and the replies that don't come: some 20 s."""

_GROUP: Final = ("stream", "group")


def stalled(consumers: Iterable[Consumer], limit: timedelta = STALLED) -> str:
    """Which read loops stand still, in one line; empty if none does.

    A loop that can't reach its server goes on trying and doesn't stand still; one whose handler
    never returns does.
    """
    return "; ".join(
        f"{consumer.stream}: the read loop stands still for {consumer.read_age:.0f} s"
        for consumer in consumers
        if consumer.read_age > limit.total_seconds()
    )


def alive(consumers: Iterable[Consumer], limit: timedelta = STALLED) -> bool:
    """Did every read loop go round within the limit?"""
    return not stalled(consumers, limit)


class BusMetrics(Collector):
    """Collects from the parts of a bus that a program has; any may be left out.

    Args:
        registry: Where to register; the caller's, so that nothing is global.
        consumers: Looked at anew at each scrape.
        publisher: Tells of its connections.
        outbox: Tells of packets.
        sampler: Tells of the server; somebody has to run it.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        consumers: Sequence[Consumer] = (),
        publisher: Publisher | None = None,
        outbox: Outbox | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._consumers = consumers
        self._publisher = publisher
        self._outbox = outbox
        self._sampler = sampler
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """All metrics. Called by the registry, in any thread."""
        yield from self._of_connections()
        if self._consumers:
            yield from _of_consumers(self._consumers)
        if self._outbox is not None:
            yield from _of_outbox(self._outbox)
        if self._sampler is not None:
            yield from _of_server(self._sampler)

    def _of_connections(self) -> Iterator[Metric]:
        connected = GaugeMetricFamily(
            "oona_connected", "1: the last attempt reached the server", labels=["connection"]
        )
        reconnects = CounterMetricFamily(
            "oona_reconnects", "Connections lost and made again", labels=["connection"]
        )
        for consumer in self._consumers:
            connected.add_metric([consumer.stream], consumer.connected)
            reconnects.add_metric([consumer.stream], consumer.reconnects)
        for lane, attempts in self._publisher.attempts.items() if self._publisher else ():
            connected.add_metric([lane], attempts.connected)
            reconnects.add_metric([lane], attempts.reconnects)
        yield connected
        yield reconnects


def _of_consumers(consumers: Sequence[Consumer]) -> Iterator[Metric]:
    handed_over = CounterMetricFamily(
        "oona_handed_over", "Entries given to the handler", labels=_GROUP
    )
    acknowledged = CounterMetricFamily(
        "oona_acknowledged", "Acknowledgements that the server has", labels=_GROUP
    )
    redelivered = CounterMetricFamily(
        "oona_redelivered", "Entries read that had been delivered before", labels=_GROUP
    )
    dead = CounterMetricFamily(
        "oona_dead_letters", "Entries that became dead letters", labels=[*_GROUP, "reason"]
    )
    lost = CounterMetricFamily(
        "oona_lost", "Entries that were deleted while they were pending", labels=_GROUP
    )
    in_flight = GaugeMetricFamily(
        "oona_in_flight", "Entries handed over and not finished", labels=_GROUP
    )
    age = GaugeMetricFamily(
        "oona_read_age_seconds", "Since the read loop last went round", labels=_GROUP
    )
    latency = HistogramMetricFamily(
        "oona_deliver_seconds", "From the server's having an entry to its hand-over", labels=_GROUP
    )
    for consumer in consumers:
        labels = [consumer.stream, consumer.group]
        handed_over.add_metric(labels, consumer.handed_over)
        acknowledged.add_metric(labels, consumer.in_flight.acknowledged)
        redelivered.add_metric(labels, consumer.redelivered)
        lost.add_metric(labels, consumer.lost)
        in_flight.add_metric(labels, len(consumer.in_flight))
        age.add_metric(labels, consumer.read_age)
        _add(latency, labels, consumer.latency)
        for reason, count in dict(consumer.dead).items():
            dead.add_metric([*labels, reason], count)
    yield from (handed_over, acknowledged, redelivered, dead, lost, in_flight, age, latency)


def _of_outbox(outbox: Outbox) -> Iterator[Metric]:
    published = CounterMetricFamily(
        "oona_published", "Packets that the server has", labels=["stream"]
    )
    spooled = CounterMetricFamily(
        "oona_spooled", "Packets that were put into the spool", labels=["stream"]
    )
    folded = CounterMetricFamily(
        "oona_folded", "Repeated alerts that were held back", labels=["stream"]
    )
    shed = CounterMetricFamily(
        "oona_shed",
        "Packets that were refused, the outbox being full",
        labels=["stream", "priority"],
    )
    latency = HistogramMetricFamily(
        "oona_publish_seconds", "From put to the server's reply", labels=["stream"]
    )
    for stream, counts in dict(outbox.by_stream).items():
        published.add_metric([stream], counts.published)
        spooled.add_metric([stream], counts.spooled)
        folded.add_metric([stream], counts.folded)
        _add(latency, [stream], counts.latency)
        for priority, count in dict(counts.shed).items():
            shed.add_metric([stream, short_name(MessagePriority, priority)], count)
    yield from (published, spooled, folded, shed, latency)
    yield GaugeMetricFamily(
        "oona_outbox_packets", "Packets put and not yet delivered", value=outbox.depth
    )
    yield CounterMetricFamily(
        "oona_unspooled", "Durable packets kept in memory, the spool being full",
        value=outbox.unspooled,
    )  # fmt: skip
    if outbox.spool is not None:
        yield GaugeMetricFamily(
            "oona_spool_packets", "Packets in the spool", value=len(outbox.spool)
        )


def _of_server(sampler: Sampler) -> Iterator[Metric]:
    depth = GaugeMetricFamily("oona_stream_entries", "Entries of a stream", labels=["stream"])
    lag = GaugeMetricFamily("oona_group_lag", "Entries that a group has yet to read", labels=_GROUP)
    pending = GaugeMetricFamily(
        "oona_group_pending", "Entries that a group has read and not finished", labels=_GROUP
    )
    age = GaugeMetricFamily("oona_sample_age_seconds", "Since the server was last asked")
    sample = sampler.sample
    if sample is not None:
        age.add_metric([], sampler.age or 0.0)
        for stream, length in sample.depth.items():
            depth.add_metric([stream], length)
        for group in sample.groups:
            pending.add_metric([group.stream, group.name], group.pending)
            if group.lag is not None:
                lag.add_metric([group.stream, group.name], group.lag)
    yield from (depth, lag, pending, age)


def _add(family: HistogramMetricFamily, labels: list[str], latency: Latency) -> None:
    *sums, count = latency.cumulative()
    buckets = [(str(bound), float(below)) for bound, below in zip(BOUNDS, sums, strict=True)]
    family.add_metric(labels, [*buckets, ("+Inf", float(count))], sum_value=latency.total)
