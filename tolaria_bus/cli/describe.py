"""What a message says, in words for people: one function for each kind of message.

Each gives the parts of one line, the most important first. Zero values that mean "not given" are
left out; names are the contract's, without the prefix of their enum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import orjson
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from tolaria_bus.cli.style import Part, Style
from tolaria_bus.leyline import (
    AdaptationCommand,
    CircuitBreakerState,
    CommandOutcome,
    CommandSeedOperation,
    CommandStatus,
    CommandType,
    DeadLetter,
    EmergencyLevel,
    EmergencySignal,
    FieldReport,
    FieldReportOutcome,
    HealthStatus,
    MetricPoint,
    PolicyUpdate,
    SeedLifecycleStage,
    SeedOperation,
    SystemStatePacket,
    TelemetryLevel,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import hyperparameters, short_name, to_json
from tolaria_bus.leyline.numbers import plain_value

Parts = list[Part]

_STATUS_STYLES: Final[dict[int, Style]] = {
    CommandStatus.COMMAND_STATUS_APPLIED: "good",
    CommandStatus.COMMAND_STATUS_DEFERRED: "note",
    CommandStatus.COMMAND_STATUS_REJECTED: "bad",
}
_LEVEL_STYLES: Final[dict[int, Style]] = {
    TelemetryLevel.TELEMETRY_LEVEL_INFO: "dim",
    TelemetryLevel.TELEMETRY_LEVEL_WARNING: "warn",
    TelemetryLevel.TELEMETRY_LEVEL_ERROR: "bad",
    TelemetryLevel.TELEMETRY_LEVEL_CRITICAL: "loud",
}
_EMERGENCY_STYLES: Final[dict[int, Style]] = {
    EmergencyLevel.EMERGENCY_LEVEL_NOTICE: "note",
    EmergencyLevel.EMERGENCY_LEVEL_ELEVATED: "warn",
    EmergencyLevel.EMERGENCY_LEVEL_CONSERVATIVE: "bad",
    EmergencyLevel.EMERGENCY_LEVEL_HALT: "loud",
}
_HEALTH_STYLES: Final[dict[int, Style]] = {
    HealthStatus.HEALTH_STATUS_HEALTHY: "good",
    HealthStatus.HEALTH_STATUS_DEGRADED: "warn",
    HealthStatus.HEALTH_STATUS_UNHEALTHY: "bad",
    HealthStatus.HEALTH_STATUS_CRITICAL: "loud",
}
_MOST_METRICS: Final = 12
"""Metrics shown of one packet; JSON lines have them all."""
_LARGEST_PLAIN: Final = 1e15


def describe(message: Message) -> Parts:
    """The parts of a line that tells what ``message`` says; never fails for a decoded message."""
    found = _DESCRIBERS.get(type(message))
    return [(to_json(message), "plain")] if found is None else found(message)


def _telemetry(packet: TelemetryPacket) -> Parts:
    parts: Parts = []
    if packet.level > TelemetryLevel.TELEMETRY_LEVEL_INFO:
        level = short_name(TelemetryLevel, packet.level)
        parts.append((level, _LEVEL_STYLES.get(packet.level, "plain")))
    for event in packet.events:
        style = _LEVEL_STYLES.get(event.level, "plain")
        parts.append((f"{event.event_id}:", "name"))
        parts.append((event.description, "plain" if style in ("dim", "loud") else style))
        parts.append((_pairs(event.attributes), "dim"))
    if packet.HasField("system_health"):
        health = packet.system_health
        style = _HEALTH_STYLES.get(health.status, "plain")
        parts.append((short_name(HealthStatus, health.status), style))
        parts.append((health.summary, "plain"))
        parts.append((_pairs(health.indicators), "dim"))
    parts += [(_metric(point), "plain") for point in packet.metrics[:_MOST_METRICS]]
    if len(packet.metrics) > _MOST_METRICS:
        parts.append((f"and {len(packet.metrics) - _MOST_METRICS} more", "dim"))
    parts += [(f"span {span.name} {_span_ms(span):.3g} ms", "plain") for span in packet.spans]
    if packet.folded:
        parts.append((f"{packet.folded} times", "warn"))
    if packet.replayed:
        parts.append(("replayed", "note"))
    parts.append((_place(packet.global_step, packet.epoch, packet.timeline), "dim"))
    return parts


def _emergency(signal: EmergencySignal) -> Parts:
    attributes = dict(signal.attributes)
    scope = attributes.pop("scope", "self")
    runs = attributes.pop("runs", "")
    attributes.pop("signal_id", None)
    level = short_name(EmergencyLevel, signal.level)
    return [
        (level, _EMERGENCY_STYLES.get(signal.level, "plain")),
        (signal.reason, "plain"),
        (f"scope {scope}" + (f" {runs}" if runs else ""), "dim"),
        (f"from {signal.origin}" if signal.origin else "", "dim"),
        (_pairs(attributes), "dim"),
    ]


def _command(command: AdaptationCommand) -> Parts:
    notes = dict(command.annotations)
    reason = notes.pop("reason", "")
    deadline = command.execution_deadline_ms
    return [
        (command_name(command.command_type), "name"),
        (_payload(command), "plain"),
        (f"“{reason}”" if reason else "", "plain"),
        (_pairs(notes), "note"),
        (f"deadline {deadline / 1000:g} s" if deadline else "", "note"),
        (f"by {command.issued_by}" if command.issued_by else "", "dim"),
        (f"id {command.command_id}", "dim"),
    ]


def _payload(command: AdaptationCommand) -> str:
    match command.WhichOneof("payload"):
        case "seed_operation":
            return _seed_operation(command.target_seed_id, command.seed_operation)
        case "optimizer_adjustment":
            adjustment = command.optimizer_adjustment
            values = hyperparameters(adjustment.hyperparameters, adjustment.values)
            of = f" of {adjustment.group}" if adjustment.group else ""
            return f"{adjustment.optimizer_id} {_pairs(values)}{of}".strip()
        case "circuit_breaker":
            breaker = command.circuit_breaker
            return f"{breaker.breaker} {_word(CircuitBreakerState, breaker.desired_state)}"
        case "rollback_payload":
            return _pairs(_plain(command.rollback_payload))
        case "emergency":
            level = short_name(EmergencyLevel, command.emergency.level)
            scope, runs = command.emergency.scope, command.emergency.runs
            return " ".join(filter(None, (level, scope and f"scope {scope}", runs)))
        case "mode":
            return "conservative" if command.mode.conservative else "normal"
        case None:
            return ""
        case other:
            return to_json(getattr(command, other)).strip("{}").replace('"', "")


def _seed_operation(seed_id: str, wanted: CommandSeedOperation) -> str:
    words = [
        _word(SeedOperation, wanted.operation),
        seed_id,
        wanted.blueprint_id,
        wanted.slot and f"in {wanted.slot}",
        _pairs(hyperparameters(wanted.parameters, wanted.values)),
    ]
    return " ".join(filter(None, words))


def _outcome(outcome: CommandOutcome) -> Parts:
    status = short_name(CommandStatus, outcome.status)
    code = outcome.code if outcome.code not in ("", "ok") else ""
    parts: Parts = [
        (status, _STATUS_STYLES.get(outcome.status, "warn")),
        (command_name(outcome.command_type), "name"),
        (f"{code}:" if code and outcome.reason else code, "warn"),
        (outcome.reason, "plain"),
    ]
    if outcome.HasField("first_outcome"):
        first = outcome.first_outcome
        then = short_name(CommandStatus, first.status)
        parts.append((f"first time {then} at step {first.step}", "note"))
    parts.append((f"at {_place(outcome.step, outcome.epoch, outcome.timeline)}", "plain"))
    if outcome.duration_ms:
        parts.append((f"in {outcome.duration_ms:.3g} ms", "dim"))
    parts.append((_pairs(_plain(outcome.details)), "dim"))
    parts.append((f"id {outcome.command_id}", "dim"))
    return parts


def _state(packet: SystemStatePacket) -> Parts:
    accuracy = packet.validation_accuracy
    parts: Parts = [
        (f"epoch {packet.current_epoch}", "name"),
        (f"step {packet.global_step}", "plain"),
        (f"validation loss {packet.validation_loss:.4g}", "plain"),
        (f"accuracy {accuracy:.2%}" if accuracy else "", "good"),
        (f"training loss {packet.training_loss:.4g}", "plain"),
        (packet.mode if packet.mode != "running" else "", "warn"),
        (f"timeline {packet.timeline}" if packet.timeline > 1 else "", "note"),
    ]
    for seed in packet.seed_states:
        stage = _word(SeedLifecycleStage, seed.stage)
        where = f" in {seed.slot}" if seed.slot else ""
        parts.append((f"seed {seed.seed_id}{where} {stage}", "note"))
    return parts


def _report(report: FieldReport) -> Parts:
    return [
        (short_name(FieldReportOutcome, report.outcome), "name"),
        (f"command {report.command_id}" if report.command_id else "", "plain"),
        (f"seed {report.seed_id}" if report.seed_id else "", "plain"),
        (f"over {report.observation_window_epochs} epochs", "plain"),
        (_pairs(hyperparameters(report.metrics, Struct())), "plain"),
        (", ".join(action.action_type for action in report.follow_up_actions), "note"),
        (report.notes, "dim"),
    ]


def _dead_letter(letter: DeadLetter) -> Parts:
    times = "once" if letter.deliveries <= 1 else f"{letter.deliveries} times"
    return [
        (f"{letter.reason}:", "bad"),
        (letter.detail, "plain"),
        (f"entry {letter.entry_id} of {letter.stream}, delivered {times}", "dim"),
    ]


def _policy(update: PolicyUpdate) -> Parts:
    return [
        (f"policy {update.policy_id}", "name"),
        (update.tamiyo_policy_version, "plain"),
        (f"{len(update.payload)} bytes", "dim"),
    ]


def command_name(kind: int) -> str:
    """``learning rate`` for COMMAND_LEARNING_RATE."""
    return short_name(CommandType, kind).lower().replace("_", " ")


def _word(enum: Any, number: int) -> str:
    return short_name(enum, number).lower().replace("_", "-")


def _place(step: int, epoch: int, timeline: int) -> str:
    """Where in a run: ``step 320, epoch 5``; the timeline only after a rollback."""
    words = [f"step {step}", f"epoch {epoch}" if epoch else ""]
    words.append(f"timeline {timeline}" if timeline > 1 else "")
    return ", ".join(filter(None, words))


def _metric(point: MetricPoint) -> str:
    name = point.name.removeprefix("tolaria.")
    labels = f"{{{_pairs(point.attributes)}}}" if point.attributes else ""
    return f"{name}{labels} {point.value:.5g}" + (f" {point.unit}" if point.unit else "")


def _span_ms(span: Any) -> float:
    # By hand: the library's own conversion refuses times that a message may well hold.
    start, end = span.start_time, span.end_time
    return float((end.seconds - start.seconds) * 1e3 + (end.nanos - start.nanos) / 1e6)


def _plain(struct: Struct) -> dict[str, Any]:
    return {name: plain_value(struct.fields[name]) for name in sorted(struct.fields)}


def _pairs(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """``name=value name=value``; numbers short, lists and objects as JSON."""
    items = values.items() if isinstance(values, Mapping) else values
    return " ".join(f"{name}={_short(item)}" for name, item in sorted(items))


def _short(item: Any) -> str:
    if isinstance(item, bool) or item is None:
        return str(item).lower()
    if isinstance(item, int | float):
        whole = float(item).is_integer() and abs(item) < _LARGEST_PLAIN
        return str(int(item)) if whole else f"{item:.6g}"
    if isinstance(item, str):
        return item
    return orjson.dumps(item, default=str).decode()


_DESCRIBERS: Final[dict[type[Message], Callable[[Any], Parts]]] = {
    AdaptationCommand: _command,
    CommandOutcome: _outcome,
    DeadLetter: _dead_letter,
    EmergencySignal: _emergency,
    FieldReport: _report,
    PolicyUpdate: _policy,
    SystemStatePacket: _state,
    TelemetryPacket: _telemetry,
}
