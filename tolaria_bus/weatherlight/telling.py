"""What Weatherlight publishes: events to a run's telemetry, alerts to the emergency stream."""

from __future__ import annotations

from typing import Final

import structlog

from tolaria_bus.leyline import (
    EmergencySignal,
    MessagePriority,
    TelemetryLevel,
    TelemetryPacket,
)
from tolaria_bus.oona.alone import OpenPublisher
from tolaria_bus.oona.event_packet import event_packet
from tolaria_bus.oona.streams import Streams

SOURCE: Final = "weatherlight"

_NORMAL: Final = MessagePriority.MESSAGE_PRIORITY_NORMAL
_HIGH: Final = MessagePriority.MESSAGE_PRIORITY_HIGH
_CRITICAL: Final = MessagePriority.MESSAGE_PRIORITY_CRITICAL


class Teller:
    """Tells the log and the bus. Nothing here waits: what can't be sent is in the spool.

    Args:
        publisher: With a spool of Weatherlight's own.
        streams: Names of the streams.
    """

    def __init__(self, publisher: OpenPublisher, streams: Streams) -> None:
        self._publisher = publisher
        self._streams = streams
        self._log = structlog.get_logger()

    def event(
        self,
        run: str,
        name: str,
        description: str,
        *,
        step: int = 0,
        warning: bool = False,
        message_id: str = "",
        **attributes: object,
    ) -> None:
        """Something that happened to a run, for the record; to its telemetry."""
        level = (
            TelemetryLevel.TELEMETRY_LEVEL_WARNING
            if warning
            else TelemetryLevel.TELEMETRY_LEVEL_INFO
        )
        packet = _packet(run, name, description, level, _NORMAL, step, attributes, message_id)
        (self._log.warning if warning else self._log.info)(
            name, run=run, description=description, **attributes
        )
        self._publisher.put(
            packet,
            stream=self._streams.telemetry(run),
            priority=_NORMAL,
            message_id=packet.packet_id,
        )

    def alert(
        self,
        run: str,
        name: str,
        description: str,
        *,
        critical: bool = False,
        step: int = 0,
        message_id: str = "",
        **attributes: object,
    ) -> None:
        """Something that somebody has to know; to the emergency stream.

        Args:
            run: The run, or empty: it is about the machine.
            name: Of the event.
            description: One line for people.
            critical: CRITICAL, not HIGH.
            step: The run's newest.
            message_id: The same for the same alert, whoever sends it; made up if not given.
            attributes: What else is known.
        """
        level = (
            TelemetryLevel.TELEMETRY_LEVEL_CRITICAL
            if critical
            else TelemetryLevel.TELEMETRY_LEVEL_ERROR
        )
        priority = _CRITICAL if critical else _HIGH
        packet = _packet(run, name, description, level, priority, step, attributes, message_id)
        shown = {key: value for key, value in attributes.items() if key != "stack"}
        self._log.error(name, run=run, description=description, **shown)
        self._publisher.put(
            packet,
            stream=self._streams.emergency,
            priority=priority,
            message_id=packet.packet_id,
        )

    def relay(self, signal: EmergencySignal) -> None:
        """Send a worker's signal, under the id under which it sends it itself."""
        self._log.warning(
            "signal_relayed", run=signal.run_id, reason=signal.reason, **dict(signal.attributes)
        )
        self._publisher.put(
            signal,
            stream=self._streams.emergency,
            priority=_CRITICAL,
            message_id=signal.attributes["signal_id"],
        )


def _packet(
    run: str,
    name: str,
    description: str,
    level: TelemetryLevel.ValueType,
    priority: MessagePriority.ValueType,
    step: int,
    attributes: dict[str, object],
    message_id: str,
) -> TelemetryPacket:
    return event_packet(
        name,
        description,
        source=SOURCE,
        run=run,
        level=level,
        priority=priority,
        attributes={key: str(value) for key, value in attributes.items()},
        step=step,
        packet_id=message_id,
    )
