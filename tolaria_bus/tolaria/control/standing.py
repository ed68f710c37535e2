"""How a run stands, beside its numbers: what holds it, what is open, what waits.

Built on the training thread, which owns all of it, a few times a second at most; handed over whole,
as plain values that nobody changes any more, so that any thread may show it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandDeferred,
    CommandType,
    ModeNote,
    SeedLifecycleStage,
)
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.safety.breakers import clock, prospect, state_name, unit
from tolaria_bus.tolaria.control.mode import held, note_mode
from tolaria_bus.tolaria.recovery.checkpoint_info import parse_name
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState

OFF: Final = (
    "structural change",
    "another optimizer class",
    "gradient surgery",
    "torch.compile",
    "profiling",
)
"""What conservative mode turns off."""
LEAST_SECONDS: Final = 0.2
"""Between two looks: whoever sends thousands of commands doesn't pay for this at each."""
_MOST_DEFERRED: Final = 50
"""Commands that wait, as far as they are told one by one."""


class Standing:
    """The newest look at a run.

    Args:
        state: Of the run.
        folder: Knows which commands wait, and what is saved.
        busy: What else the run is doing, in words; empty: nothing.
        monotonic: Seconds.

    Attributes:
        told: The newest look; any thread may read it. ``docs/wire.md`` says what is in it.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder,
        busy: Callable[[], str],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.told: Mapping[str, Any] = MappingProxyType({})
        self._state = state
        self._folder = folder
        self._busy = busy
        self._monotonic = monotonic
        self._next = 0.0
        self._seeds: list[dict[str, Any]] = []
        self._seeds_stale = True

    def seeds_changed(self) -> None:
        """What is told of seeds isn't so any more: it waits for the device, so only then."""
        self._seeds_stale = True

    def look(self, *, anyway: bool = False) -> None:
        """Look again, if the last look isn't new, or anyway."""
        now = self._monotonic()
        if now < self._next and not anyway:
            return
        self._next = now + LEAST_SECONDS
        state = self._state
        note_mode(state.mode, state.step)
        if self._seeds_stale:
            self._seeds, self._seeds_stale = self._look_at_seeds(), False
        deferred = self._folder.ledger.deferred()
        self.told = MappingProxyType(
            {
                "held": self._held(),
                "conservative": self._conservative(),
                "breakers": [self._breaker(breaker) for breaker in state.breakers],
                "deferred": [item.command_id for item in deferred],
                "deferred_commands": [_deferred(item) for item in deferred[:_MOST_DEFERRED]],
                "seeds": self._seeds,
                "checkpoint": self._checkpoint(),
                "profiling": self._busy(),
            }
        )

    def _held(self) -> dict[str, Any] | None:
        mode = self._state.mode
        return {**_note(mode.held_note), "ends": "send resume"} if held(mode) else None

    def _conservative(self) -> dict[str, Any] | None:
        mode = self._state.mode
        if not mode.conservative:
            return None
        told = _note(mode.conservative_note)
        ends = "send mode normal"
        if mode.emergency.conservative:
            ends = f"with the emergency, or {ends}"
        elif told["by"] == "tolaria":
            ends = f"when breaker timing closes, or {ends}"
        if mode.halted:
            ends = f"send resume, then {ends}"
        return {**told, "off": list(OFF), "ends": ends}

    def _breaker(self, breaker: Any) -> dict[str, Any]:
        now = clock(breaker.name, step=self._state.step, epoch=self._state.epoch)
        return {
            "name": breaker.name,
            "state": state_name(breaker.state),
            "since": breaker.since,
            "unit": unit(breaker.name),
            "reason": breaker.reason,
            "failures": breaker.failures,
            "threshold": breaker.policy.threshold,
            "ends": prospect(breaker, now),
        }

    def _checkpoint(self) -> dict[str, Any] | None:
        found = self._folder.newest_saved()
        if found is None:
            return None
        name, written_at_ns = found
        return {"name": name, "step": parse_name(name)[0], "written": written_at_ns / 1e9}

    def _look_at_seeds(self) -> list[dict[str, Any]]:
        state = self._state
        return [
            {
                "seed_id": seed.seed_id,
                "stage": short_name(SeedLifecycleStage, seed.stage),
                "slot": seed.slot,
                "blueprint_id": seed.blueprint_id,
                "parameters": seed.parameter_count,
                "since_step": max(state.step - seed.age_steps, 0),
            }
            for seed in state.kasmina.seed_states(state.step, state.epoch)
        ]


def _note(note: ModeNote) -> dict[str, Any]:
    return {
        "reason": note.reason,
        "by": note.by,
        "since_step": note.since_step,
        "since": note.since_ns / 1e9,
    }


def _deferred(waiting: CommandDeferred) -> dict[str, Any]:
    command = AdaptationCommand.FromString(waiting.command)
    return {
        "command_id": waiting.command_id,
        "command": short_name(CommandType, command.command_type),
        "at_step": waiting.at_step or None,
        "at_epoch": waiting.at_epoch or None,
        "by": command.issued_by,
        "reason": command.annotations.get("reason", ""),
    }
