"""What a worker's bus tells of itself: to the log, and to everybody."""

from __future__ import annotations

from collections.abc import Mapping

from structlog.typing import FilteringBoundLogger

from tolaria_bus.leyline import (
    BusMessageType,
    MessagePriority,
    TelemetryLevel,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.oona.event_packet import event_packet
from tolaria_bus.worker.bridge import BusOutbound

LOUD = frozenset(
    {
        "bad_signatures",
        "entries_cut",
        "entries_lost",
        "fenced",
        "group_recreated",
        "group_removed",
        "lease_lost",
        "length_limit",
        "letters_cut",
        "refused",
        "signal_refused",
        "spool_failed",
        "stream_blocked",
        "stream_mended",
        "unreadable",
        "unsendable",
        "unspooled",
    }
)
"""Events of the bus that somebody has to know."""
SIGNAL = short_name(BusMessageType, BusMessageType.BUS_MESSAGE_TYPE_EMERGENCY_SIGNAL)


def tell(
    name: str,
    detail: Mapping[str, str],
    *,
    run: str,
    outbound: BusOutbound,
    log: FilteringBoundLogger,
) -> None:
    """Something happened to the bus, or came by it.

    Args:
        name: Of the event.
        detail: What is known of it.
        run: The run's id.
        outbound: The way to everybody.
        log: Of the worker.
    """
    loud = name in LOUD
    (log.warning if loud else log.info)(name, **detail)
    priority = (
        MessagePriority.MESSAGE_PRIORITY_HIGH if loud else MessagePriority.MESSAGE_PRIORITY_NORMAL
    )
    outbound.telemetry(bus_event(run, name, detail, priority), priority)
    if name == "dead_letter" and detail["kind"] == SIGNAL:
        # Whoever forges one, or whose signals nobody can obey, is somebody's business at once.
        tell("signal_refused", detail, run=run, outbound=outbound, log=log)


def bus_event(
    run: str, name: str, detail: Mapping[str, str], priority: MessagePriority.ValueType
) -> TelemetryPacket:
    """An event of the bus itself as telemetry."""
    loud = priority >= MessagePriority.MESSAGE_PRIORITY_HIGH
    level = TelemetryLevel.TELEMETRY_LEVEL_WARNING if loud else TelemetryLevel.TELEMETRY_LEVEL_INFO
    text = ", ".join(f"{key} {value}" for key, value in detail.items())
    return event_packet(
        name,
        text or name,
        source="oona",
        run=run,
        level=level,
        priority=priority,
        attributes=detail,
    )
