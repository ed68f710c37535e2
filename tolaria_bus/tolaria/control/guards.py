"""What watches over a run besides its loss: breakers, the boundary's budget, conservative mode.

Each change is a decision in the journal and is told: a breaker that opens and conservative mode
with priority HIGH, their ends as events. While journaled steps are run again nothing is decided:
the journal has the decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tolaria_bus.leyline import (
    AdaptationCommand,
    CircuitBreakerState,
    CommandType,
    Decision,
    JournalRecord,
    SeedOperation,
)
from tolaria_bus.safety import breakers, emergency
from tolaria_bus.safety.breaker import BreakerChange
from tolaria_bus.safety.breakers import KASMINA, OPTIMIZER, TIMING, clock, state_name, told
from tolaria_bus.safety.budget import Budget
from tolaria_bus.tolaria.control.mode import note_mode
from tolaria_bus.tolaria.control.steerable import CommandRefused
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState

BOUNDARY: Final = Budget(
    {"assembly": 3.5, "tamiyo": 12.0, "adaptation": 1.5, "check": 1.0}, total_ms=18.0
)
"""Of an epoch's end. Validation, the checkpoint's copy and structural change are work, and not in
it."""

CONSERVATIVE: Final = "conservative"
"""The kind of the decision that enters or leaves conservative mode."""
_BY: Final = "tolaria"


class Guards:
    """Counts what goes wrong, and acts. Training thread only.

    Args:
        state: Of the run; its breakers report here from now on.
        folder: Whose journal gets the decisions.
        telemetry: Told of changes.
        boundary_ms: What an epoch's end may take, in milliseconds.
        note: Told the cause of an emergency, and its reason.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder,
        telemetry: Telemetry,
        *,
        boundary_ms: float = BOUNDARY.total_ms,
        note: Callable[[str, str], None] = lambda cause, reason: None,
    ) -> None:
        self._budget = BOUNDARY.scaled(boundary_ms)
        self._state = state
        self._folder = folder
        self._telemetry = telemetry
        self._note = note
        state.breakers.on_change = self._changed

    def allows(self, name: str) -> bool:
        """May what this breaker guards be tried now?"""
        return self._state.breakers[name].allows(self._now(name))

    def failed(self, name: str, reason: str) -> None:
        """What this breaker guards has failed."""
        self._state.breakers[name].failed(self._now(name), reason)

    def succeeded(self, name: str) -> None:
        """What this breaker guards has worked."""
        self._state.breakers[name].succeeded(self._now(name))

    def admit(self, command: AdaptationCommand) -> None:
        """Refuse a new command whose breaker is open.

        Commands that were admitted once are not asked again: a run that is repeated must come to
        the same outcomes.

        Raises:
            CommandRefused: ``breaker_open``.
        """
        name = _guarding(command)
        if name and not self.allows(name):
            why = self._state.breakers[name].reason
            raise CommandRefused("breaker_open", f"breaker {name} is open: {why}")

    def tried(self, command: AdaptationCommand, *, failure: str) -> None:
        """Count how a command went: why it failed, empty if it was applied."""
        if name := _guarding(command):
            if failure:
                self.failed(name, failure)
            else:
                self.succeeded(name)

    def judge_boundary(self, took_ms: Mapping[str, float]) -> None:
        """Hold an epoch's end to its budget; breaches in a row end in conservative mode.

        Args:
            took_ms: Phase → milliseconds of the training thread's processor time.
        """
        if self._telemetry.replaying:
            return
        found = self._budget.breaches(took_ms)
        self.allows(TIMING)  # An open one may be due for its trial, which this was.
        if found:
            reason = ", ".join(str(breach) for breach in found)
            self._telemetry.event("boundary_breach", f"epoch {self._state.epoch}: {reason}")
            self.failed(TIMING, reason)
        else:
            self.succeeded(TIMING)

    def apply(self, decision: Decision) -> None:
        """Be as a journaled decision left the run."""
        if decision.kind == breakers.DECISION:
            self._state.breakers.apply(decision)
        elif decision.kind == CONSERVATIVE:
            mode = self._state.mode
            mode.conservative = decision.values["on"] == "true"
            mode.reason, mode.by = decision.reason, _BY
            note_mode(mode, self._state.step)

    def _now(self, name: str) -> float:
        return clock(name, step=self._state.step, epoch=self._state.epoch)

    def _changed(self, change: BreakerChange) -> None:
        if self._telemetry.replaying:
            return
        self._journal(self._state.breakers.decision(change))
        opens = change.after == CircuitBreakerState.CIRCUIT_STATE_OPEN
        say = self._telemetry.alert if opens else self._telemetry.event
        say("breaker", told(change), breaker=change.name, state=state_name(change.after))
        if change.name == TIMING:
            self._follow_timing(change)
        if opens and not self._state.breakers[change.name].held:
            cause = emergency.BOUNDARY_SLOW if change.name == TIMING else emergency.BREAKER_OPENED
            self._note(cause, told(change))

    def _follow_timing(self, change: BreakerChange) -> None:
        """Conservative mode begins when the breaker opens, and ends when it is closed again."""
        mode = self._state.mode
        # A pause since then has left its own name in `by`.
        by = mode.conservative_note.by or mode.by
        opens = change.after == CircuitBreakerState.CIRCUIT_STATE_OPEN
        closes = change.after == CircuitBreakerState.CIRCUIT_STATE_CLOSED
        # What somebody else asked for is theirs to end.
        if (opens and not mode.conservative) or (
            closes
            and mode.conservative
            and by == _BY
            and not mode.halted
            # Nor what an emergency did.
            and not mode.emergency.conservative
        ):
            reason = f"timing: {change.reason}"
            decision = Decision(
                kind=CONSERVATIVE, reason=reason, values={"on": "true" if opens else "false"}
            )
            if self._journal(decision):
                self.apply(decision)
                say = self._telemetry.alert if opens else self._telemetry.event
                say("conservative_mode", ("on: " if opens else "off: ") + reason)

    def _journal(self, decision: Decision) -> bool:
        try:
            self._folder.write(self._state.stamp(JournalRecord(decision=decision)))
        except JournalUnwritable as error:
            # A breaker changes no weight by itself: it works all the same, until the next start.
            self._telemetry.event("not_journaled", f"{decision.kind}: {error}")
            return False
        return True


def _guarding(command: AdaptationCommand) -> str:
    """The breaker around what a command asks for, or empty. A cull only takes away."""
    if command.command_type == CommandType.COMMAND_SEED:
        cull = command.seed_operation.operation == SeedOperation.SEED_OP_CULL
        return "" if cull else KASMINA
    return OPTIMIZER if command.command_type == CommandType.COMMAND_OPTIMIZER else ""
