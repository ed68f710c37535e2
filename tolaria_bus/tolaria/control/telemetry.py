"""What the trainer publishes of itself: step metrics, events, alerts.

The step pays one clock read and one comparison; a packet is built at most every
``telemetry_seconds``. Steps that are run again after a recovery are marked ``replayed``, and
their alerts are not raised a second time.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tolaria_bus.leyline import (
    EmergencyLevel,
    EmergencySignal,
    MessagePriority,
    MetricPoint,
    ProfileReport,
    TelemetryEvent,
    TelemetryLevel,
    TelemetryPacket,
)
from tolaria_bus.safety.emergency import level_name
from tolaria_bus.safety.emergency_signal import checksum
from tolaria_bus.tolaria.engine.figures import Figure

if TYPE_CHECKING:
    from tolaria_bus.tolaria.control.mailbox import Outbound
    from tolaria_bus.tolaria.recovery.state import TrainingState

SOURCE = "tolaria"
_HURRY = 4
"""In an emergency, step metrics come so many times as often."""


class Telemetry:
    """Builds packets with the run's coordinates and hands them out. Training thread only.

    Attributes:
        replaying: Set by the fence while journaled steps are run again.
    """

    def __init__(
        self,
        outbound: Outbound,
        run: str,
        state: TrainingState,
        *,
        seconds: float = 0.25,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.replaying = False
        self._outbound = outbound
        self._run = run
        self._state = state
        self._seconds = self._pace = seconds
        self._wall_ns = wall_ns
        self._monotonic = monotonic
        self._count = 0
        # Of no generator that training draws from, and short: it is in every packet twice.
        self._prefix = base64.urlsafe_b64encode(os.urandom(6)).decode()
        self._next = monotonic()
        self._last_step = state.step
        self._last_time = monotonic()

    def hurry(self, hurried: bool) -> None:
        """Publish step metrics more often, or as often as ever."""
        self._pace = self._seconds / _HURRY if hurried else self._seconds
        self._next = min(self._next, self._monotonic() + self._pace)

    def due(self) -> bool:
        """Is it time for step metrics? The only part of telemetry that every step pays for."""
        return self._monotonic() >= self._next

    def step_metrics(self, loss: float, figures: Iterable[Figure]) -> float:
        """Publish the metrics of the steps since the last call.

        Args:
            loss: The newest loss that is known, one step old.
            figures: What else there is to tell.

        Returns:
            Steps a second since the last call.
        """
        now = self._monotonic()
        steps = self._state.step - self._last_step
        speed = steps / (now - self._last_time) if now > self._last_time else 0.0
        self._next = now + self._pace
        self._last_step, self._last_time = self._state.step, now
        packet = self.packet()
        if self._state.last_loss_step:
            _add(packet, "tolaria.training.loss", loss, "")
        _add(packet, "tolaria.training.steps_per_second", max(speed, 0.0), "1/s")
        for name, value, unit, attributes in figures:
            _add(packet, name, value, unit, attributes)
        if level := self._state.mode.emergency.level:
            _add(packet, "tolaria.emergency.level", level, "")
        self._outbound.telemetry(packet, MessagePriority.MESSAGE_PRIORITY_LOW)
        return max(speed, 0.0)

    def metrics(
        self,
        points: Mapping[str, tuple[float, str]],
        priority: MessagePriority.ValueType = MessagePriority.MESSAGE_PRIORITY_NORMAL,
    ) -> None:
        """Publish ``name -> (value, unit)``."""
        packet = self.packet()
        for name, (value, unit) in points.items():
            _add(packet, name, value, unit)
        self._outbound.telemetry(packet, priority)

    def publish(self, points: Iterable[MetricPoint]) -> None:
        """Publish metrics that have attributes, priority NORMAL."""
        packet = self.packet()
        packet.metrics.extend(points)
        self._outbound.telemetry(packet, MessagePriority.MESSAGE_PRIORITY_NORMAL)

    def spans(self, name: str, marks: Sequence[tuple[str, int]], **attributes: object) -> None:
        """Publish how long the phases of one thing took, as spans with a common parent.

        Args:
            name: Of the whole.
            marks: Name and start of each phase, in nanoseconds of the wall clock; at last a name
                that isn't used, and the end.
            attributes: Of the whole.
        """
        packet = self.packet()
        parent = self._next_id()
        phases = [
            (f"{name}.{phase}", f"{parent}.{place}", parent, start, end)
            for place, ((phase, start), (_, end)) in enumerate(pairwise(marks))
        ]
        whole = (name, parent, "", marks[0][1], marks[-1][1])
        for title, span_id, above, start, end in (whole, *phases):
            span = packet.spans.add(name=title, span_id=span_id, parent_span_id=above)
            span.start_time.FromNanoseconds(start)
            span.end_time.FromNanoseconds(end)
        packet.spans[0].attributes.update({key: str(value) for key, value in attributes.items()})
        self._outbound.telemetry(packet, MessagePriority.MESSAGE_PRIORITY_NORMAL)

    def event(self, name: str, description: str, **attributes: object) -> None:
        """Publish something that happened, for the record: INFO, priority NORMAL."""
        self._event(
            name,
            description,
            TelemetryLevel.TELEMETRY_LEVEL_INFO,
            MessagePriority.MESSAGE_PRIORITY_NORMAL,
            attributes,
        )

    def warning(self, name: str, description: str, **attributes: object) -> None:
        """Publish something to look into some time; the run does without: WARNING, NORMAL."""
        self._event(
            name,
            description,
            TelemetryLevel.TELEMETRY_LEVEL_WARNING,
            MessagePriority.MESSAGE_PRIORITY_NORMAL,
            attributes,
        )

    def profile(self, report: ProfileReport, name: str, description: str) -> None:
        """Publish what a trace says, with an event: INFO, priority NORMAL."""
        packet = self.packet()
        packet.profile.CopyFrom(report)
        self._event(
            name,
            description,
            TelemetryLevel.TELEMETRY_LEVEL_INFO,
            MessagePriority.MESSAGE_PRIORITY_NORMAL,
            {"profile": report.profile, "command_id": report.command_id},
            packet=packet,
        )

    def alert(
        self, name: str, description: str, *, critical: bool = False, **attributes: object
    ) -> None:
        """Publish something that somebody has to know: HIGH, or CRITICAL; to the emergency stream.

        While steps are run again it goes out at priority LOW: it was raised the first time.
        """
        level = (
            TelemetryLevel.TELEMETRY_LEVEL_CRITICAL
            if critical
            else TelemetryLevel.TELEMETRY_LEVEL_ERROR
        )
        priority = (
            MessagePriority.MESSAGE_PRIORITY_CRITICAL
            if critical
            else MessagePriority.MESSAGE_PRIORITY_HIGH
        )
        if self.replaying:
            priority = MessagePriority.MESSAGE_PRIORITY_LOW
        self._event(name, description, level, priority, attributes)

    def emergency(
        self,
        level: EmergencyLevel.ValueType,
        reason: str,
        *,
        scope: str = "self",
        runs: str = "",
        command_id: str = "",
        cause: str = "",
    ) -> None:
        """Broadcast a signal, unless it was broadcast before the recovery that is going on.

        Args:
            level: How bad it is.
            reason: For people.
            scope: Who has to obey: ``self`` (nobody), ``run``, ``pattern``, ``all``.
            runs: The glob of scope ``pattern``.
            command_id: Of the command that asked for it, if one did: a process that dies on the way
                leaves it to the next one, and however often it is sent it is one signal.
            cause: Of the trainer's own, where no command did; likewise.
        """
        if self.replaying:
            return
        signal = EmergencySignal(
            version=1,
            level=level,
            reason=reason,
            origin=f"run/{self._run}",
            monotonic_time_ms=int(self._monotonic() * 1e3),
            run_id=self._run,
        )
        signal.triggered_at.FromNanoseconds(self._wall_ns())
        signal.attributes["scope"] = scope
        state = self._state
        here = f"t{state.timeline}.s{state.step}.{cause}.{level_name(level)}"
        signal.attributes["signal_id"] = f"{self._run}/{command_id or here}"
        if cause:
            signal.attributes["cause"] = cause
        signal.attributes["step"] = str(state.step)
        if runs:
            signal.attributes["runs"] = runs
        signal.payload_checksum = checksum(signal)
        self._outbound.emergency(signal)

    def packet(self) -> TelemetryPacket:
        """An empty packet that says which run, when, and where in it."""
        packet = TelemetryPacket(
            packet_id=self._next_id(),
            source_subsystem=SOURCE,
            level=TelemetryLevel.TELEMETRY_LEVEL_INFO,
            training_run_id=self._run,
            global_step=self._state.step,
            epoch=self._state.epoch,
            timeline=self._state.timeline,
            replayed=self.replaying,
        )
        packet.timestamp.FromNanoseconds(self._wall_ns())
        return packet

    def _next_id(self) -> str:
        self._count += 1
        number = self._count.to_bytes((self._count.bit_length() + 7) // 8)
        return self._prefix + base64.urlsafe_b64encode(number).rstrip(b"=").decode()

    def _event(
        self,
        name: str,
        description: str,
        level: TelemetryLevel.ValueType,
        priority: MessagePriority.ValueType,
        attributes: Mapping[str, object],
        packet: TelemetryPacket | None = None,
    ) -> None:
        packet = packet or self.packet()
        packet.level = level
        packet.priority = priority
        packet.events.append(
            TelemetryEvent(
                event_id=name,
                description=description,
                level=level,
                attributes={key: str(value) for key, value in attributes.items()},
            )
        )
        self._outbound.telemetry(packet, priority)


def _add(
    packet: TelemetryPacket,
    name: str,
    value: float,
    unit: str,
    attributes: Mapping[str, str] | None = None,
) -> None:
    packet.metrics.append(MetricPoint(name=name, value=value, unit=unit, attributes=attributes))
