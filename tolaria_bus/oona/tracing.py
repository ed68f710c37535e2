"""The trace that dealing with dead letters leaves: who did what to how many, by reason.

For a run's letters it is telemetry of the run. Shared letters belong to no run, and what becomes of
them concerns every one: there it is an alert on the emergency stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis

from tolaria_bus.leyline import MessagePriority, TelemetryLevel, TelemetryPacket
from tolaria_bus.oona.event_packet import event_packet
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.sending import STREAM_LENGTH
from tolaria_bus.oona.streams import Streams, run_of
from tolaria_bus.oona.trust import KeyRing

_HIGH = MessagePriority.MESSAGE_PRIORITY_HIGH
_NORMAL = MessagePriority.MESSAGE_PRIORITY_NORMAL


class Tracer:
    """Publishes the trace of one person's work on one dead-letter stream.

    Args:
        client: Any client.
        streams: Names of the streams.
        dead: Key of the dead-letter stream.
        by: Who (``operator/ann``).
        ring: Signs, if it has a key.
    """

    def __init__(self, client: Redis, streams: Streams, dead: str, by: str, ring: KeyRing) -> None:
        self._client = client
        self._streams = streams
        self._dead = dead
        self._by = by
        self._ring = ring

    async def tell(self, event: str, reasons: Mapping[str, int]) -> None:
        """Publish an event: so many letters, by reason. Raises redis-py's errors."""
        run = run_of(self._dead)
        stream = self._streams.emergency if run is None else self._streams.telemetry(run)
        priority = _HIGH if run is None else _NORMAL
        fields: Any = seal(
            self._packet(event, reasons, run or "", priority),
            stream=stream,
            source=self._by,
            ring=self._ring,
            priority=priority,
        )
        await self._client.xadd(stream, fields, maxlen=STREAM_LENGTH)

    def _packet(
        self,
        event: str,
        reasons: Mapping[str, int],
        run: str,
        priority: MessagePriority.ValueType,
    ) -> TelemetryPacket:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        attributes = {"by": self._by, "stream": self._dead, "count": str(sum(reasons.values()))}
        attributes |= {f"reason.{reason}": str(count) for reason, count in reasons.items()}
        return event_packet(
            event,
            f"by {self._by} in {self._dead}: {told}",
            source="oona",
            run=run,
            level=TelemetryLevel.TELEMETRY_LEVEL_INFO,
            priority=priority,
            attributes=attributes,
        )
