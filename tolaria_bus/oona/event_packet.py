"""A packet that tells of one event."""

from __future__ import annotations

from collections.abc import Mapping

from tolaria_bus.leyline import MessagePriority, TelemetryEvent, TelemetryLevel, TelemetryPacket
from tolaria_bus.oona.sealing import new_message_id


def event_packet(
    name: str,
    description: str,
    *,
    source: str,
    run: str,
    level: TelemetryLevel.ValueType,
    priority: MessagePriority.ValueType,
    attributes: Mapping[str, str],
    step: int = 0,
    packet_id: str = "",
) -> TelemetryPacket:
    """One event, of now.

    Args:
        name: Of the event.
        description: For people.
        source: Which subsystem tells it.
        run: What it is about; empty: none.
        level: Of packet and event.
        priority: Of the packet.
        attributes: Of the event.
        step: The run's newest; 0: not known.
        packet_id: Made up if not given.
    """
    packet = TelemetryPacket(
        packet_id=packet_id or new_message_id(),
        source_subsystem=source,
        level=level,
        training_run_id=run,
        priority=priority,
        global_step=step,
        events=[
            TelemetryEvent(
                event_id=name, description=description, level=level, attributes=attributes
            )
        ],
    )
    packet.timestamp.GetCurrentTime()
    return packet
