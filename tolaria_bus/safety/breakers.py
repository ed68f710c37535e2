"""The breakers of a run: which there are, in which units they count, and what survives of them.

====================  ==========================================  ==============================
breaker               what is a failure                           open: what is refused
====================  ==========================================  ==============================
``timing``            an epoch boundary over its budget           what is optional (conservative
                                                                  mode)
``tamiyo``            a wait for Tamiyo that was cut off          waiting for Tamiyo
``kasmina``           a seed command that ended the process       seed operations that grow
``optimizer``         a rebuild that failed                       rebuilds of the optimizer
``checkpoint``        a checkpoint that could not be written      checkpoints that nobody asked for
====================  ==========================================  ==============================

All count in epochs or steps, none in seconds: a run that is repeated comes to the same decisions.
Each change of state is a decision in the journal; failures that have not opened a breaker yet are
remembered by checkpoints alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tolaria_bus.leyline import CircuitBreakerState, Decision
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.safety.breaker import Breaker, BreakerChange, BreakerPolicy

TIMING: Final = "timing"
TAMIYO: Final = "tamiyo"
KASMINA: Final = "kasmina"
OPTIMIZER: Final = "optimizer"
CHECKPOINT: Final = "checkpoint"

_EPOCHS: Final = BreakerPolicy(threshold=3, cool_down=3, successes=3, longest=96)
_STEPS: Final = BreakerPolicy(threshold=3, cool_down=1000, successes=1, longest=100_000)
_POLICIES: Final[Mapping[str, BreakerPolicy]] = {
    TIMING: _EPOCHS,
    # Two cut-offs, and the run no longer waits.
    TAMIYO: BreakerPolicy(threshold=2, cool_down=3, successes=2, longest=96),
    KASMINA: _STEPS,
    OPTIMIZER: _STEPS,
    CHECKPOINT: BreakerPolicy(threshold=3, cool_down=3, successes=1, longest=12),
}
_BY_STEP: Final = frozenset({KASMINA, OPTIMIZER})

DECISION: Final = "breaker"
"""The kind of a change's record in the journal."""


class Breakers:
    """All breakers of one run. Training thread only.

    Attributes:
        on_change: Told of each change of state; set by who keeps the journal.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[BreakerChange], None] = lambda change: None
        self._breakers = {
            name: Breaker(name, policy, lambda change: self.on_change(change))
            for name, policy in _POLICIES.items()
        }

    def __iter__(self) -> Iterator[Breaker]:
        return iter(self._breakers.values())

    def __getitem__(self, name: str) -> Breaker:
        return self._breakers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._breakers

    @property
    def names(self) -> tuple[str, ...]:
        """Of all breakers."""
        return tuple(self._breakers)

    def state_dict(self) -> dict[str, Any]:
        """What must survive, JSON-able."""
        return {breaker.name: breaker.state_dict() for breaker in self}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Be as :meth:`state_dict` saw them; breakers that it didn't know are as new."""
        for breaker in self:
            breaker.load_state_dict(saved.get(breaker.name) or Breaker(breaker.name).state_dict())

    def decision(self, change: BreakerChange) -> Decision:
        """A change, as the journal has it."""
        return Decision(
            kind=DECISION,
            reason=change.reason,
            values={
                "breaker": change.name,
                "state": json.dumps(self[change.name].state_dict()),
            },
        )

    def apply(self, decision: Decision) -> None:
        """Be as a journaled change left them; one that this version doesn't know is skipped."""
        name = decision.values["breaker"]
        if name in self:
            self[name].load_state_dict(json.loads(decision.values["state"]))


def clock(name: str, *, step: int, epoch: int) -> float:
    """What time it is for a breaker: steps or epochs done."""
    return float(step if name in _BY_STEP else epoch)


def unit(name: str) -> str:
    """In what a breaker counts: ``steps`` or ``epochs``."""
    return "steps" if name in _BY_STEP else "epochs"


def prospect(breaker: Breaker, now: float) -> str:
    """What would close a breaker, in words; of a closed one, nothing.

    Args:
        breaker: Which.
        now: See :func:`clock`.
    """
    if breaker.state == CircuitBreakerState.CIRCUIT_STATE_CLOSED:
        return ""
    by_hand = f"send breaker {breaker.name} closed"
    if breaker.held:
        return by_hand
    needed = breaker.policy.successes
    if breaker.state == CircuitBreakerState.CIRCUIT_STATE_HALF_OPEN:
        return f"{needed - breaker.trials} that work, or {by_hand}"
    left = max(breaker.since + breaker.cool_down - now, 0.0)
    return f"{needed} that work, tried in {left:.0f} {unit(breaker.name)}, or {by_hand}"


def state_name(state: CircuitBreakerState.ValueType) -> str:
    """``closed``, ``open`` or ``half_open``."""
    return short_name(CircuitBreakerState, state).lower()


def told(change: BreakerChange) -> str:
    """A change in a line, for people."""
    before, after = state_name(change.before), state_name(change.after)
    return f"{change.name}: {before} → {after}: {change.reason}"
