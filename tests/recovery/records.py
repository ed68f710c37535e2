"""Journal records, written short."""

from __future__ import annotations

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandAttempt,
    CommandDeferred,
    CommandIntent,
    CommandOutcome,
    CommandResult,
    CommandSource,
    CommandStatus,
    CommandType,
    Decision,
    JournalRecord,
    RunStarted,
    TimelineCut,
)

APPLIED = CommandStatus.COMMAND_STATUS_APPLIED
REJECTED = CommandStatus.COMMAND_STATUS_REJECTED
EXPIRED = CommandStatus.COMMAND_STATUS_EXPIRED


def note(text: str = "x", step: int = 0) -> JournalRecord:
    """A decision: a record with something to recognise it by."""
    return JournalRecord(step=step, decision=Decision(kind="note", reason=text))


def origin(entry: str, stream: str = "oona:{r}:control") -> CommandSource:
    return CommandSource(stream=stream, entry_id=entry, source="test")


def intent(
    command_id: str,
    entry: str = "1-1",
    digest: bytes = b"d",
    kind: CommandType.ValueType = CommandType.COMMAND_PAUSE,
) -> JournalRecord:
    command = AdaptationCommand(command_id=command_id, command_type=kind)
    return JournalRecord(
        intent=CommandIntent(
            command_id=command_id,
            digest=digest,
            origin=origin(entry),
            command=command.SerializeToString(deterministic=True),
        )
    )


def attempt(command_id: str, number: int = 1) -> JournalRecord:
    return JournalRecord(attempt=CommandAttempt(command_id=command_id, number=number))


def result(
    command_id: str,
    status: CommandStatus.ValueType = APPLIED,
    entry: str = "1-1",
    digest: bytes = b"d",
    code: str = "",
) -> JournalRecord:
    return JournalRecord(
        result=CommandResult(
            command_id=command_id,
            digest=digest,
            origin=origin(entry),
            outcome=CommandOutcome(command_id=command_id, status=status, code=code),
        )
    )


def deferred(
    command_id: str, at_step: int = 10, entry: str = "1-1", digest: bytes = b"d"
) -> JournalRecord:
    return JournalRecord(
        deferred=CommandDeferred(
            command_id=command_id, digest=digest, origin=origin(entry), at_step=at_step
        )
    )


def cut(
    target_sequence: int, target_step: int = 0, from_timeline: int = 1, command_id: str = ""
) -> JournalRecord:
    return JournalRecord(
        timeline=from_timeline + 1,
        step=target_step,
        cut=TimelineCut(
            from_timeline=from_timeline,
            target_sequence=target_sequence,
            target_step=target_step,
            command_id=command_id,
        ),
    )


def started(**environment: str) -> JournalRecord:
    return JournalRecord(timeline=1, started=RunStarted(run_id="r", environment=environment))


def numbered(*records: JournalRecord) -> list[JournalRecord]:
    """As a journal would number them: from 1."""
    for sequence, record in enumerate(records, start=1):
        record.sequence = sequence
    return list(records)
