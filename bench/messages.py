"""Messages like those of a real run, for the benches that need some."""

from __future__ import annotations

import time

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandLearningRate,
    CommandType,
    EmergencyLevel,
    EmergencySignal,
    TelemetryLevel,
    TelemetryPacket,
)

STAMP = "monotonic_ns"
"""Attribute with the moment of the cause; CLOCK_MONOTONIC is one clock for all processes."""


def telemetry(number: int) -> TelemetryPacket:
    """The step metrics of a run with one seed: what is published most."""
    packet = TelemetryPacket(
        packet_id=f"o8HtQkYg{number:04x}"[:12],  # As long as a real one, up to 16 million.
        source_subsystem="tolaria",
        level=TelemetryLevel.TELEMETRY_LEVEL_INFO,
        training_run_id="digits",
        global_step=number,
        epoch=number // 45,
        timeline=1,
    )
    packet.timestamp.FromNanoseconds(time.time_ns())
    packet.metrics.add(name="tolaria.training.loss", value=0.0731)
    packet.metrics.add(name="tolaria.training.steps_per_second", value=812.4, unit="1/s")
    return packet


def command(number: int) -> AdaptationCommand:
    """A change of the learning rate, as an operator sends it."""
    sent = AdaptationCommand(
        version=1,
        command_id=f"bench-{number}",
        command_type=CommandType.COMMAND_LEARNING_RATE,
        issued_by="operator/bench",
        learning_rate=CommandLearningRate(learning_rate=0.001),
    )
    sent.issued_at.FromNanoseconds(time.time_ns())
    return sent


def signal(number: int) -> EmergencySignal:
    """A notice stamped with now."""
    sent = EmergencySignal(
        version=1,
        level=EmergencyLevel.EMERGENCY_LEVEL_NOTICE,
        reason="a loss that is not finite",
        origin="run/bench",
        run_id="bench",
    )
    sent.triggered_at.FromNanoseconds(time.time_ns())
    sent.attributes["scope"] = "self"
    sent.attributes["signal_id"] = f"bench-{number}"
    sent.attributes[STAMP] = str(time.monotonic_ns())
    return sent
