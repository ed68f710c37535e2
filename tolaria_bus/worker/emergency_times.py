"""How long a signal took from its cause to the emergency stream, held against its level's limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from tolaria_bus.leyline import (
    EmergencySignal,
    MessagePriority,
    MetricPoint,
    TelemetryEvent,
    TelemetryLevel,
    TelemetryPacket,
)
from tolaria_bus.oona.sealing import new_message_id
from tolaria_bus.safety.emergency import LIMITS, level_name

_MOST: Final = 256
"""Signals under way that are timed; more of them at a time are a flood."""


class EmergencyTimes:
    """Times the signals of one run. ``began`` on the training thread, ``published`` on the bus's.

    Args:
        run: Its id.
        tell: Gets a packet for each signal that is published: ``tolaria.emergency.published_ms``,
            and the event ``emergency_late`` where that is over the limit.
        monotonic: Seconds.
    """

    def __init__(
        self,
        run: str,
        tell: Callable[[TelemetryPacket], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._tell = tell
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._under_way: dict[str, tuple[int, float]] = {}

    def began(self, signal: EmergencySignal) -> None:
        """A signal is about to be handed to the bus."""
        with self._lock:
            if len(self._under_way) < _MOST:
                began = (int(signal.level), self._monotonic())
                self._under_way.setdefault(signal.attributes["signal_id"], began)

    @property
    def idle(self) -> bool:
        """No signal is under way."""
        return not self._under_way

    def published(self, message_id: str) -> None:
        """The server has this; anything but a signal of ours is none of our business."""
        with self._lock:
            found = self._under_way.pop(message_id, None)
        if found is None:
            return
        level, began = found
        took, limit = self._monotonic() - began, LIMITS[level].total_seconds()
        packet = TelemetryPacket(
            packet_id=new_message_id(),
            source_subsystem="oona",
            level=TelemetryLevel.TELEMETRY_LEVEL_INFO,
            priority=MessagePriority.MESSAGE_PRIORITY_NORMAL,
            training_run_id=self._run,
            metrics=[
                MetricPoint(
                    name="tolaria.emergency.published_ms",
                    value=took * 1e3,
                    unit="ms",
                    attributes={"level": level_name(level)},
                )
            ],
        )
        packet.timestamp.GetCurrentTime()
        if took > limit:
            warning = packet.level = TelemetryLevel.TELEMETRY_LEVEL_WARNING
            name = level_name(level)
            packet.events.append(
                TelemetryEvent(
                    event_id="emergency_late",
                    description=f"{name} was published {took:.3g} s after its cause; "
                    f"{limit:g} s are allowed",
                    level=warning,
                    attributes={
                        "level": name,
                        "published_seconds": f"{took:.3f}",
                        "limit_seconds": f"{limit:g}",
                        "signal_id": message_id,
                    },
                )
            )
        self._tell(packet)
