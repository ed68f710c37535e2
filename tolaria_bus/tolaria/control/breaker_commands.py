"""The circuit-breaker command: somebody opens or closes a breaker by hand."""

from __future__ import annotations

from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.safety.breaker import STATES
from tolaria_bus.safety.breakers import clock, state_name
from tolaria_bus.tolaria.control.steerable import CommandRefused, Details, Effect, Steerable


def judge_breaker(command: AdaptationCommand, run: Steerable) -> Effect:
    """Judge a circuit-breaker command.

    Raises:
        CommandRefused: No such breaker, or no such state.
    """
    wanted = command.circuit_breaker
    state = run.state
    if wanted.breaker not in state.breakers:
        known = ", ".join(state.breakers.names)
        raise CommandRefused("bad_payload", f"breaker = {wanted.breaker!r}: must be one of {known}")
    if wanted.desired_state not in STATES:
        raise CommandRefused(
            "bad_payload",
            f"desired_state = {wanted.desired_state}: must be closed, open or half_open",
        )

    def effect() -> Details:
        breaker = state.breakers[wanted.breaker]
        before = state_name(breaker.state)
        now = clock(breaker.name, step=state.step, epoch=state.epoch)
        by = command.issued_by or "an operator"
        breaker.force(wanted.desired_state, now, wanted.rationale or f"asked for by {by}")
        return {"breaker": breaker.name, "before": before, "after": state_name(breaker.state)}

    return effect
