"""A run's own standing in the four levels of an emergency: what is done at each, and told.

What raises and lowers it is :mod:`tolaria_bus.safety.emergency`, which is pure. Here it becomes
part of the run: a signal for each rise, out before the disk is asked for anything; a decision in
the journal; conservative mode from CONSERVATIVE on; a run that stands still at HALT. While
journaled steps are run again nothing is decided: the journal has the decisions.

The signal of a rise has an id made of run, timeline, step, cause and level: a process that dies
between the signal and its record comes to the same one again, and readers see it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from tolaria_bus.leyline import (
    AdaptationCommand,
    CircuitBreakerState,
    Decision,
    EmergencyLevel,
    EmergencyState,
    JournalRecord,
)
from tolaria_bus.leyline.codec import from_json, to_json
from tolaria_bus.safety import emergency
from tolaria_bus.safety.breakers import TIMING
from tolaria_bus.safety.emergency import CONSERVATIVE, ELEVATED, HALT, LIMITS, level_name
from tolaria_bus.tolaria.control.mode import note_mode
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.ledger import id_at
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState

DECISION: Final = "emergency"
"""The kind of the decision that a run comes to another level."""

_JOURNALED: Final = 3
"""So many occurrences of a cause are journaled; more of them change no level."""


class Emergencies:
    """Holds a run's level, and acts on it. Training thread only.

    Args:
        state: Of the run; its mode has the level.
        folder: Whose journal gets the decisions.
        telemetry: Sends the signals.
        clean_steps: After so many steps without a cause the level falls by one.
        wall_ns: The wall clock, that of messages.
        server_ms: The clock of the commands' entries, see :class:`.mailbox.Mailbox`.

    Attributes:
        next_step: The step at which the level falls if nothing happens; the trainer compares it at
            every step.
        shown: The level for others to see, from any thread: level, cause, reason, by, since_step,
            falls_at_step (``None`` at HALT); ``None`` while there is none.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder,
        telemetry: Telemetry,
        *,
        clean_steps: int,
        wall_ns: Callable[[], int] = time.time_ns,
        server_ms: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.next_step = 0
        self.shown: dict[str, Any] | None = None
        self._state = state
        self._folder = folder
        self._telemetry = telemetry
        self._clean_steps = clean_steps
        self._wall_ns = wall_ns
        self._server_ms = server_ms

    def note(self, cause: str, reason: str, *, with_cut: bool = False) -> None:
        """Something went wrong. Told and done if the run comes to a higher level by it.

        Args:
            cause: One of :data:`~tolaria_bus.safety.emergency.CAUSES`.
            reason: For people.
            with_cut: A rollback follows: its record takes the mode along, and is this one's too.
        """
        if self._telemetry.replaying:
            return
        before = self._standing
        after = emergency.worsened(before, cause, step=self._state.step, reason=reason)
        rises = after.level > before.level
        if rises:
            # Out first: a reader of the emergency stream must not wait for the disk.
            self._telemetry.emergency(after.level, reason, cause=cause)
        journaled = with_cut or not (rises or after.counts[cause] <= _JOURNALED)
        # What changes no weight works all the same until the next start.
        if journaled or self._journal(after, reason) or after.level < CONSERVATIVE:
            self._change(after)

    def obey(
        self, level: EmergencyLevel.ValueType, *, cause: str, reason: str, by: str, issued_ns: int
    ) -> float | None:
        """Somebody's word, which is a command in the journal already.

        Args:
            level: That was asked for.
            cause: ``command`` or ``signal``.
            reason: For people.
            by: Whose word it is.
            issued_ns: When it was given, wall clock; 0: not known, or not meant for at once.

        Returns:
            Milliseconds from the word to here; ``None`` where that isn't known.
        """
        standing = self._standing
        after = emergency.raised(
            standing, level, step=self._state.step, cause=cause, reason=reason, by=by
        )
        self._change(after)
        if not issued_ns or self._telemetry.replaying:
            return None
        took = (self._wall_ns() - issued_ns) / 1e9
        limit = LIMITS[level].total_seconds()
        if took > limit:
            self._telemetry.event(
                "emergency_late",
                f"{level_name(level)} was seen {took:.3g} s after it was given; "
                f"{limit:g} s are allowed",
                level=level_name(level),
                seen_seconds=f"{took:.3f}",
                limit_seconds=f"{limit:g}",
            )
        return took * 1e3

    def given_at(self, issued_ns: int) -> str:
        """When a word was given, as the id that the server would have given an entry then.

        Args:
            issued_ns: By this machine's wall clock; 0: now.

        Returns:
            Empty where there is no server.
        """
        now_ms = self._server_ms()
        if now_ms is None or not issued_ns:
            return id_at(now_ms)
        age_ms = max(0, self._wall_ns() - issued_ns) // 1_000_000
        return id_at(max(0, now_ms - age_ms))

    def stand(self, command: AdaptationCommand) -> None:
        """Make no step, for a HALT that isn't in the journal yet: that changes no weight."""
        mode = self._state.mode
        if mode.halted:
            return
        mode.halted = True
        mode.reason, mode.by = command.annotations.get("reason", ""), command.issued_by
        note_mode(mode, self._state.step)
        self._telemetry.alert(
            "halted",
            f"halted at step {self._state.step}: {mode.reason}; the journal can't be written yet",
            by=mode.by,
            reason=mode.reason,
        )

    def halt(self, reason: str) -> None:
        """HALT, by a decision that is in the journal."""
        self._change(
            emergency.raised(
                self._standing,
                HALT,
                step=self._state.step,
                cause=emergency.ROLLBACK_FAILED,
                reason=reason,
                by="tolaria",
            )
        )

    def resume(self) -> None:
        """A RESUME was applied: a HALT is over."""
        mode = self._state.mode
        mode.halted = False
        self._change(
            emergency.resumed(self._standing, step=self._state.step, conservative=mode.conservative)
        )

    def release(self) -> None:
        """Somebody has set conservative mode: it is theirs from now on."""
        self._state.mode.emergency.CopyFrom(
            emergency.released(self._standing, step=self._state.step)
        )
        self.look()

    def ease(self) -> None:
        """The level falls by one, if the clean stretch is long enough."""
        if self._telemetry.replaying:
            return
        before = self._standing
        step = self._state.step
        after = emergency.eased(before, step=step, clean_steps=self._clean_steps)
        if after is None:
            self.look()
            return
        reason = f"{self._clean_steps} steps without a cause"
        if not self._journal(after, reason):
            # Once more, when the journal may be writable again.
            self.next_step = step + self._clean_steps
            return
        self._change(after)
        self._telemetry.event(
            "emergency_eased",
            f"{level_name(before.level)} → {level_name(after.level)}: {reason}",
            level=level_name(after.level),
        )

    def apply(self, decision: Decision) -> None:
        """Be as a journaled decision left the run."""
        self._change(from_json(decision.values["state"], EmergencyState))

    def look(self) -> None:
        """The mode may have changed: see what follows from it."""
        standing = self._standing
        self.next_step = emergency.easing_step(standing, self._clean_steps)
        self._telemetry.hurry(standing.level >= ELEVATED)
        self.shown = None
        if standing.level:
            self.shown = {
                "level": level_name(standing.level),
                "cause": standing.cause,
                "reason": standing.reason,
                "by": standing.by,
                "since_step": standing.since_step,
                "falls_at_step": self.next_step if self.next_step < emergency.NEVER else None,
            }

    @property
    def _standing(self) -> EmergencyState:
        return self._state.mode.emergency

    def _change(self, after: EmergencyState) -> None:
        """Be at a level, with what belongs to it."""
        mode = self._state.mode
        if after.level == HALT and not mode.halted:
            mode.halted = True
            mode.reason, mode.by = after.reason, after.by
        if after.level >= CONSERVATIVE and not mode.conservative:
            after.conservative = mode.conservative = True
            mode.reason, mode.by = after.reason, after.by
            self._telemetry.alert("conservative_mode", f"on: {after.reason}")
        elif after.level < CONSERVATIVE and after.conservative:
            after.conservative = False
            self._leave_conservative()
        note_mode(mode, self._state.step)
        mode.emergency.CopyFrom(after)
        self.look()

    def _leave_conservative(self) -> None:
        mode, timing = self._state.mode, self._state.breakers[TIMING]
        mode.by = "tolaria"
        if timing.state == CircuitBreakerState.CIRCUIT_STATE_CLOSED:
            mode.conservative = False
            mode.reason = f"{self._clean_steps} steps without a cause"
            self._telemetry.event("conservative_mode", f"off: {mode.reason}")
        else:
            # From now on it is that breaker's to end.
            mode.reason = f"timing: {timing.reason}"
            note_mode(mode, self._state.step, anew=True)

    def _journal(self, after: EmergencyState, reason: str) -> bool:
        decision = Decision(kind=DECISION, reason=reason, values={"state": to_json(after)})
        try:
            self._folder.write(self._state.stamp(JournalRecord(decision=decision)))
        except JournalUnwritable as error:
            self._telemetry.event("not_journaled", f"{DECISION}: {error}")
            return False
        return True
