"""Leyline: the contracts, the only vocabulary.

Every message and enum of package ``leyline.v1``, generated from ``contracts/leyline/v1/*.proto``
by ``make proto``; there are no local copies. ``tolaria_bus.leyline.codec`` turns bytes and JSON
into messages, or into one clear error.
"""

from tolaria_bus.leyline.v1.bus_pb2 import (
    BusEnvelope,
    BusMessageType,
    DeadLetter,
    DeadLetterField,
    MessagePriority,
    Settlement,
    SpooledPacket,
)
from tolaria_bus.leyline.v1.command_pb2 import (
    AdaptationCommand,
    CircuitBreakerState,
    CommandCancel,
    CommandCheckpoint,
    CommandCircuitBreaker,
    CommandEmergency,
    CommandLearningRate,
    CommandMode,
    CommandOptimizerAdjustment,
    CommandOutcome,
    CommandProfile,
    CommandSeedOperation,
    CommandStatus,
    CommandStructuralPruning,
    CommandType,
)
from tolaria_bus.leyline.v1.emergency_pb2 import (
    EmergencyLevel,
    EmergencySignal,
)
from tolaria_bus.leyline.v1.journal_pb2 import (
    CheckpointSaved,
    CommandAttempt,
    CommandDeferred,
    CommandIntent,
    CommandResult,
    CommandSource,
    Decision,
    JournalRecord,
    RunMode,
    RunStarted,
    RunStopped,
    TimelineCut,
)
from tolaria_bus.leyline.v1.report_pb2 import (
    FieldReport,
    FieldReportOutcome,
    MitigationAction,
    PolicyUpdate,
)
from tolaria_bus.leyline.v1.seed_pb2 import (
    SeedLifecycleGate,
    SeedLifecycleStage,
    SeedOperation,
    SeedState,
)
from tolaria_bus.leyline.v1.state_pb2 import (
    HardwareContext,
    SlotState,
    SystemStatePacket,
)
from tolaria_bus.leyline.v1.telemetry_pb2 import (
    HealthStatus,
    MetricPoint,
    SystemHealth,
    TelemetryEvent,
    TelemetryLevel,
    TelemetryPacket,
    TraceSpan,
)

__all__ = [
    "AdaptationCommand",
    "BusEnvelope",
    "BusMessageType",
    "CheckpointSaved",
    "CircuitBreakerState",
    "CommandAttempt",
    "CommandCancel",
    "CommandCheckpoint",
    "CommandCircuitBreaker",
    "CommandDeferred",
    "CommandEmergency",
    "CommandIntent",
    "CommandLearningRate",
    "CommandMode",
    "CommandOptimizerAdjustment",
    "CommandOutcome",
    "CommandProfile",
    "CommandResult",
    "CommandSeedOperation",
    "CommandSource",
    "CommandStatus",
    "CommandStructuralPruning",
    "CommandType",
    "DeadLetter",
    "DeadLetterField",
    "Decision",
    "EmergencyLevel",
    "EmergencySignal",
    "FieldReport",
    "FieldReportOutcome",
    "HardwareContext",
    "HealthStatus",
    "JournalRecord",
    "MessagePriority",
    "MetricPoint",
    "MitigationAction",
    "PolicyUpdate",
    "RunMode",
    "RunStarted",
    "RunStopped",
    "SeedLifecycleGate",
    "SeedLifecycleStage",
    "SeedOperation",
    "SeedState",
    "Settlement",
    "SlotState",
    "SpooledPacket",
    "SystemHealth",
    "SystemStatePacket",
    "TelemetryEvent",
    "TelemetryLevel",
    "TelemetryPacket",
    "TimelineCut",
    "TraceSpan",
]
