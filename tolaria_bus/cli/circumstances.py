"""What any command can carry, and how it is put into one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tolaria_bus.cli.words import ComposeError
from tolaria_bus.leyline import AdaptationCommand, CommandType, MessagePriority

_LARGEST_DEADLINE_MS: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What any command can carry.

    Attributes:
        command_id: Its id; the run takes an id once.
        issued_by: Who sends it (``operator/ann``).
        issued_at_ns: Wall clock, nanoseconds since the Unix epoch; the deadline counts from it.
        at_step: Take effect when so many optimizer steps are done.
        at_epoch: Take effect when so many epochs are done.
        late_ok: If that fence has passed, take effect at the next one.
        deadline_s: Worth nothing after so many seconds.
        reason: Shown to people wherever the command is.
    """

    command_id: str
    issued_by: str
    issued_at_ns: int
    at_step: int | None = None
    at_epoch: int | None = None
    late_ok: bool = False
    deadline_s: float | None = None
    reason: str | None = None


def annotate(command: AdaptationCommand, given: Circumstances) -> AdaptationCommand:
    """The command with id, sender, time and circumstances; what it already says itself stays.

    Raises:
        ComposeError: Circumstances that exclude each other or are out of range.
    """
    if given.at_step is not None and given.at_epoch is not None:
        raise ComposeError("--at-step and --at-epoch exclude each other")
    complete = AdaptationCommand()
    complete.CopyFrom(command)
    notes = {
        "at_step": given.at_step,
        "at_epoch": given.at_epoch,
        "late_ok": "true" if given.late_ok else None,
        "reason": given.reason,
    }
    for name, value in notes.items():
        if value is not None:
            complete.annotations[name] = str(value)
    if complete.HasField("circuit_breaker") and not complete.circuit_breaker.rationale:
        complete.circuit_breaker.rationale = given.reason or ""
    fence = complete.annotations.keys() & {"at_step", "at_epoch"}
    if given.late_ok and not fence:
        raise ComposeError("--late-ok goes with --at-step or --at-epoch")
    if given.deadline_s is not None:
        complete.execution_deadline_ms = _milliseconds(given.deadline_s)
    complete.version = complete.version or 1
    complete.command_id = complete.command_id or given.command_id
    complete.issued_by = complete.issued_by or given.issued_by
    if not complete.HasField("issued_at"):
        complete.issued_at.FromNanoseconds(given.issued_at_ns)
    return complete


def priority(command: AdaptationCommand) -> MessagePriority.ValueType:
    """How urgent: an emergency is CRITICAL, stop and pause HIGH, all else NORMAL."""
    if command.command_type == CommandType.COMMAND_EMERGENCY:
        return MessagePriority.MESSAGE_PRIORITY_CRITICAL
    if command.command_type in (CommandType.COMMAND_PAUSE, CommandType.COMMAND_STOP):
        return MessagePriority.MESSAGE_PRIORITY_HIGH
    return MessagePriority.MESSAGE_PRIORITY_NORMAL


def _milliseconds(seconds: float) -> int:
    if not math.isfinite(seconds) or not 1 <= seconds * 1000 <= _LARGEST_DEADLINE_MS:
        raise ComposeError(
            f"--deadline {seconds:g}: must be 0.001 to {_LARGEST_DEADLINE_MS // 1000} seconds"
        )
    return round(seconds * 1000)
