"""The outcome that each command gets: what it says, in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandOutcome,
    CommandResult,
    CommandStatus,
    CommandType,
    TimelineCut,
)
from tolaria_bus.tolaria.control.commands import CommandRefused
from tolaria_bus.tolaria.recovery.ledger import ID_CONFLICT, Identity
from tolaria_bus.tolaria.recovery.state import TrainingState

_TOO_LATE: Final = frozenset({"deadline", "late_answer"})

FATAL: Final = "fatal"
"""Code of the outcome for a command that ended its process too often, and is a dead letter."""


class Outcomes:
    """Builds outcomes with the run's coordinates at the time."""

    def __init__(
        self, run: str, state: TrainingState, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._run = run
        self._state = state
        self._wall_ns = wall_ns

    def applied(
        self, command: AdaptationCommand, details: Mapping[str, Any] | None = None
    ) -> CommandOutcome:
        """It took effect here; a rollback, where its details say that the run goes on."""
        outcome = self._make(command, CommandStatus.COMMAND_STATUS_APPLIED, "ok", "")
        if details:
            outcome.details.update(details)
        if command.command_type == CommandType.COMMAND_ROLLBACK and details:
            # On the way there steps may still have to be run again.
            outcome.step = details.get("target_step", outcome.step)
            outcome.timeline = details.get("timeline", outcome.timeline)
        return outcome

    def deferred(self, command: AdaptationCommand, fence: str = "") -> CommandOutcome:
        """It will take effect at a later fence."""
        reason = f"it takes effect at the fence of {fence}" if fence else "it waits for its fence"
        return self._make(command, CommandStatus.COMMAND_STATUS_DEFERRED, "deferred", reason)

    def refused(self, command: AdaptationCommand, refusal: CommandRefused) -> CommandOutcome:
        """REJECTED, or EXPIRED where it came too late."""
        expired = refusal.code in _TOO_LATE
        status = (
            CommandStatus.COMMAND_STATUS_EXPIRED
            if expired
            else CommandStatus.COMMAND_STATUS_REJECTED
        )
        return self._make(command, status, refusal.code, str(refusal))

    def known(
        self, command: AdaptationCommand, how: Identity, finished: CommandResult | None
    ) -> CommandOutcome:
        """The answer to an entry whose command id the run has had before.

        Args:
            command: As this entry has it.
            how: What the ledger says of the two.
            finished: The RESULT of the first, ``None`` if it is deferred still.
        """
        first = self.deferred(command) if finished is None else finished.outcome
        if how is Identity.REDELIVERY:
            return first
        if how is Identity.CONFLICT:
            return self._make(
                command,
                CommandStatus.COMMAND_STATUS_REJECTED,
                ID_CONFLICT,
                f"command_id {command.command_id!r} belongs to another command already",
            )
        outcome = self._make(
            command,
            CommandStatus.COMMAND_STATUS_DUPLICATE,
            "duplicate",
            f"the same command was answered before, at step {first.step}",
        )
        outcome.first_outcome.CopyFrom(first)
        return outcome

    def rolled_back(self, result: CommandResult, cut: TimelineCut, timeline: int) -> CommandOutcome:
        """A second outcome for a command whose effect a rollback has undone.

        Args:
            result: The first.
            cut: The rollback.
            timeline: That it began.
        """
        outcome = CommandOutcome()
        outcome.CopyFrom(result.outcome)
        outcome.status = CommandStatus.COMMAND_STATUS_ROLLED_BACK
        outcome.code = "rolled_back"
        outcome.reason = f"undone by the rollback to step {cut.target_step} ({cut.cause})"
        outcome.timeline, outcome.step = timeline, cut.target_step
        outcome.decided_at.FromNanoseconds(self._wall_ns())
        return outcome

    def _make(
        self,
        command: AdaptationCommand,
        status: CommandStatus.ValueType,
        code: str,
        reason: str,
    ) -> CommandOutcome:
        state = self._state
        outcome = CommandOutcome(
            command_id=command.command_id,
            status=status,
            timeline=state.timeline,
            code=code,
            reason=reason,
            step=state.step,
            epoch=state.epoch,
            command_type=command.command_type,
            training_run_id=self._run,
            issued_by=command.issued_by,
        )
        outcome.decided_at.FromNanoseconds(self._wall_ns())
        return outcome
