"""The generated files are those of the contracts, and the contracts are those of the wire.

The tables below are written by hand from the wire's description: other programs, that exist, send
and read these numbers.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from tolaria_bus import leyline

ROOT = Path(__file__).parents[2]
CHECKED_IN = ROOT / "tolaria_bus" / "leyline" / "v1"

ENUMS = {
    "CommandType": (
        "COMMAND_",
        (
            "UNKNOWN=0 SEED=1 ROLLBACK=2 OPTIMIZER=3 CIRCUIT_BREAKER=4 PAUSE=5 EMERGENCY=6 "
            "STRUCTURAL_PRUNING=7 RESUME=20 CHECKPOINT=21 STOP=22 PROFILE=23 LEARNING_RATE=24 "
            "CONTINUE=25 MODE=26 CANCEL=27"
        ),
    ),
    "SeedOperation": (
        "SEED_OP_",
        (
            "UNKNOWN=0 GERMINATE=1 START_TRAINING=2 START_GRAFTING=3 STABILIZE=4 EVALUATE=5 "
            "FINE_TUNE=6 FOSSILIZE=7 CULL=8 CANCEL=9"
        ),
    ),
    "SeedLifecycleStage": (
        "SEED_STAGE_",
        (
            "UNKNOWN=0 DORMANT=1 GERMINATED=2 TRAINING=3 BLENDING=4 SHADOWING=5 PROBATIONARY=6 "
            "FOSSILIZED=7 CULLED=8 EMBARGOED=9 RESETTING=10 TERMINATED=11"
        ),
    ),
    "SeedLifecycleGate": (
        "SEED_GATE_",
        (
            "UNKNOWN=0 G0_SANITY=1 G1_GRADIENT_HEALTH=2 G2_STABILITY=3 G3_INTERFACE=4 "
            "G4_SYSTEM_IMPACT=5 G5_RESET=6"
        ),
    ),
    "MessagePriority": ("MESSAGE_PRIORITY_", "UNSPECIFIED=0 LOW=1 NORMAL=2 HIGH=3 CRITICAL=4"),
    "TelemetryLevel": ("TELEMETRY_LEVEL_", "UNSPECIFIED=0 INFO=1 WARNING=2 ERROR=3 CRITICAL=4"),
    "EmergencyLevel": (
        "EMERGENCY_LEVEL_",
        ("UNSPECIFIED=0 NOTICE=1 ELEVATED=2 CONSERVATIVE=3 HALT=4"),
    ),
    "HealthStatus": ("HEALTH_STATUS_", "UNKNOWN=0 HEALTHY=1 DEGRADED=2 UNHEALTHY=3 CRITICAL=4"),
    "CircuitBreakerState": ("CIRCUIT_STATE_", "UNKNOWN=0 CLOSED=1 OPEN=2 HALF_OPEN=3"),
    "BusMessageType": (
        "BUS_MESSAGE_TYPE_",
        (
            "UNSPECIFIED=0 SYSTEM_STATE=1 ADAPTATION_COMMAND=2 FIELD_REPORT=3 TELEMETRY=4 "
            "POLICY_UPDATE=5 EMERGENCY_SIGNAL=10 COMMAND_OUTCOME=30 DEAD_LETTER=31"
        ),
    ),
    "FieldReportOutcome": (
        "FIELD_REPORT_OUTCOME_",
        ("UNSPECIFIED=0 SUCCESS=1 NEUTRAL=2 REGRESSION=3 ABORTED=4"),
    ),
}

# Message: "type name=number ...", a type holding for the names that follow it.
MESSAGES = {
    "HardwareContext": "string device_type=1 device_id=2 float total_memory_gb=3 "
    "available_memory_gb=4 temperature_celsius=5 utilization_percent=6 uint32 compute_capability=7",
    "SeedState": "string seed_id=1 SeedLifecycleStage stage=2 float gradient_norm=3 "
    "learning_rate=4 uint32 layer_depth=5 map<string,float> metrics=6 uint32 age_epochs=7 "
    "float risk_score=8",
    "SystemStatePacket": "uint32 version=1 current_epoch=2 float validation_accuracy=3 "
    "validation_loss=4 uint64 timestamp_ns=5 HardwareContext hardware_context=6 "
    "map<string,float> training_metrics=7 SeedState[] seed_states=8 string packet_id=9 "
    "uint64 global_step=10 float training_loss=11 string source_subsystem=12 training_run_id=13 "
    "experiment_name=14",
    "CommandSeedOperation": "SeedOperation operation=1 string blueprint_id=2 "
    "map<string,float> parameters=3 Struct values=30",
    "CommandOptimizerAdjustment": "string optimizer_id=1 map<string,float> hyperparameters=2 "
    "Struct values=30 string group=31",
    "CommandCircuitBreaker": "CircuitBreakerState desired_state=1 string rationale=2 breaker=30",
    "AdaptationCommand": "uint32 version=1 string command_id=2 CommandType command_type=3 "
    "string target_seed_id=4 uint32 execution_deadline_ms=5 Timestamp issued_at=6 "
    "string issued_by=7 CommandSeedOperation seed_operation=10 "
    "CommandOptimizerAdjustment optimizer_adjustment=11 CommandCircuitBreaker circuit_breaker=12 "
    "Struct rollback_payload=13 map<string,string> annotations=20",
    "EmergencySignal": "uint32 version=1 EmergencyLevel level=2 string reason=3 origin=4 "
    "Timestamp triggered_at=5 uint64 monotonic_time_ms=6 string run_id=7 "
    "map<string,string> attributes=8 bytes payload_checksum=9",
    "MetricPoint": "string name=1 double value=2 string unit=3 map<string,string> attributes=4",
    "TelemetryEvent": "string event_id=1 description=2 TelemetryLevel level=3 "
    "map<string,string> attributes=4",
    "TraceSpan": "string span_id=1 parent_span_id=2 name=3 Timestamp start_time=4 end_time=5 "
    "map<string,string> attributes=6",
    "SystemHealth": "HealthStatus status=1 string summary=2 map<string,string> indicators=3",
    "TelemetryPacket": "string packet_id=1 Timestamp timestamp=2 string source_subsystem=3 "
    "TelemetryLevel level=4 MetricPoint[] metrics=10 TelemetryEvent[] events=20 "
    "TraceSpan[] spans=30 SystemHealth system_health=40",
    "FieldReport": "uint32 version=1 string report_id=2 command_id=3 training_run_id=4 seed_id=5 "
    "blueprint_id=6 FieldReportOutcome outcome=7 map<string,float> metrics=8 "
    "uint32 observation_window_epochs=9 Timestamp issued_at=10 string tamiyo_policy_version=11 "
    "MitigationAction[] follow_up_actions=12 string notes=13",
    "MitigationAction": "string action_type=1 rationale=2",
    "PolicyUpdate": "uint32 version=1 string policy_id=2 training_run_id=3 Timestamp issued_at=4 "
    "string tamiyo_policy_version=5 bytes payload=6",
    "BusEnvelope": "BusMessageType message_type=1 bytes payload=2 map<string,string> attributes=3 "
    "string message_id=10 uint64 issued_at_ns=11 bytes nonce=12 string key_id=13 source=14 "
    "audience=15 MessagePriority priority=16 string correlation_id=17 uint32 schema_version=18",
}
NEW_FIELDS_FROM = dict.fromkeys(MESSAGES, 30) | {"TelemetryPacket": 50}

_SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_BOOL: "bool",
}


def fields_of(table: str) -> dict[str, tuple[str, int]]:
    fields, kind = {}, ""
    for word in table.split():
        name, equals, number = word.partition("=")
        if equals:
            fields[name] = (kind, int(number))
        else:
            kind = word
    return fields


def kind_of(field: Any) -> str:
    below = field.message_type
    if below is not None and below.GetOptions().map_entry:
        return "map<{},{}>".format(*(kind_of(below.fields_by_name[n]) for n in ("key", "value")))
    named = below or field.enum_type
    kind = _SCALARS[field.type] if named is None else named.name
    return f"{kind}[]" if field.is_repeated else kind


@pytest.mark.parametrize("name", ENUMS)
def test_enums_are_those_of_the_wire(name: str) -> None:
    prefix, table = ENUMS[name]
    expected = {prefix + pair.split("=")[0]: int(pair.split("=")[1]) for pair in table.split()}
    assert dict(getattr(leyline, name).items()) == expected


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_are_those_of_the_wire(name: str) -> None:
    kind = getattr(leyline, name).DESCRIPTOR
    expected = fields_of(MESSAGES[name])
    actual = {field.name: (kind_of(field), field.number) for field in kind.fields}
    assert {name: actual.get(name) for name in expected} == expected
    added = {name: number for name, (_, number) in actual.items() if name not in expected}
    assert all(number >= NEW_FIELDS_FROM[name] for number in added.values()), added


def test_a_commands_payloads_exclude_each_other() -> None:
    [payload] = leyline.AdaptationCommand.DESCRIPTOR.oneofs
    first = [field.name for field in payload.fields if field.number < 30]
    assert first == [
        "seed_operation",
        "optimizer_adjustment",
        "circuit_breaker",
        "rollback_payload",
    ]
    assert payload.name == "payload"


def test_the_package_is_leyline_v1() -> None:
    for name in (*MESSAGES, *ENUMS):
        assert getattr(leyline, name).DESCRIPTOR.full_name == f"leyline.v1.{name}"


def test_every_message_and_enum_is_exported() -> None:
    for source in CHECKED_IN.glob("*_pb2.py"):
        module = importlib.import_module(f"tolaria_bus.leyline.v1.{source.stem}")
        descriptor = module.DESCRIPTOR
        for name in (*descriptor.message_types_by_name, *descriptor.enum_types_by_name):
            assert getattr(leyline, name) is getattr(module, name)
            assert name in leyline.__all__


def test_the_checked_in_files_are_what_the_contracts_give(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "contracts" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    made = {path.name: path.read_text() for path in generator.generate(tmp_path)}
    there = {path.name: path.read_text() for path in CHECKED_IN.glob("*_pb2.py*")}
    assert made.keys() == there.keys(), "run: make proto"
    assert [name for name in made if made[name] != there[name]] == [], "run: make proto"
