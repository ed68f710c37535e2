"""The profile command: a trace of the next steps."""

from __future__ import annotations

from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.tolaria.control.profiling import MOST_STEPS, ProfileFailed
from tolaria_bus.tolaria.control.steerable import CommandRefused, Details, Effect, Steerable


def judge_profile(command: AdaptationCommand, run: Steerable) -> Effect:
    """Judge a profile command.

    Raises:
        CommandRefused: ``out_of_range``, ``conservative``, or ``busy``: a trace is being recorded.
    """
    steps = command.profile.steps
    if not 1 <= steps <= MOST_STEPS:
        raise CommandRefused("out_of_range", f"steps = {steps}: must be 1 to {MOST_STEPS}")
    if run.state.mode.conservative:
        raise CommandRefused(
            "conservative", "profile: refused in conservative mode (send mode normal)"
        )
    profiling = run.profiling
    if profiling.busy:
        raise CommandRefused("busy", f"profile: {profiling.busy}; ask again when it is told")

    def effect() -> Details:
        try:
            return profiling.ask(steps, command.command_id)
        except ProfileFailed as error:
            raise CommandRefused("profile_failed", str(error)) from error

    return effect
