"""Circuit breakers: stop asking for what keeps failing, and find out later whether it works again.

A breaker is *closed* while all is well. After ``threshold`` failures in a row it *opens*, and what
it guards is refused. When the cool-down has passed it is *half-open*: trials are admitted, of which
``successes`` in a row close it, and one failure opens it again, for twice as long each time up to
``longest``. The pattern is Michael Nygard's (*Release It!*, 2nd edition, "Circuit Breaker").

No clock is read here: callers say what time it is, in a unit of their own. What guards something
that may change a weight counts in training steps, so that a run that is done again comes to the
same decisions; what guards the outside counts in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tolaria_bus.leyline import CircuitBreakerState

STATES = frozenset(
    {
        CircuitBreakerState.CIRCUIT_STATE_CLOSED,
        CircuitBreakerState.CIRCUIT_STATE_OPEN,
        CircuitBreakerState.CIRCUIT_STATE_HALF_OPEN,
    }
)
"""That a breaker can be in."""


@dataclass(frozen=True)
class BreakerPolicy:
    """When a breaker opens and closes.

    Attributes:
        threshold: Failures in a row that open it.
        cool_down: How long it stays open before trials are admitted, in the caller's unit.
        successes: Trials in a row that close it.
        longest: The longest cool-down that repeated opening leads to, in the caller's unit.

    Raises:
        ValueError: A number is out of range.
    """

    threshold: int = 3
    cool_down: float = 60.0
    successes: int = 1
    longest: float = 3600.0

    def __post_init__(self) -> None:
        if self.threshold < 1 or self.successes < 1:
            raise ValueError("threshold and successes must be at least 1")
        if not 0.0 < self.cool_down <= self.longest:
            raise ValueError("cool_down must be above 0 and at most longest")


@dataclass(frozen=True)
class BreakerChange:
    """A breaker went from one state to another.

    Attributes:
        name: Of the breaker.
        before: Its state until now.
        after: Its state from now on.
        reason: For people.
    """

    name: str
    before: CircuitBreakerState.ValueType
    after: CircuitBreakerState.ValueType
    reason: str


@dataclass
class Breaker:
    """One circuit breaker. Not thread-safe: owned by one thread or one event loop.

    Attributes:
        name: What it guards.
        policy: When it opens and closes.
        on_change: Told of each change of state.
        state: Closed, open or half-open.
        failures: In a row, while closed.
        trials: Successes in a row, while half-open.
        opened: How often it opened since it was last closed.
        since: When the present state began, in the caller's unit.
        held: Opened by somebody, who alone closes it: no cool-down.
        reason: Why it is in this state, for people; empty if it always was.
    """

    name: str
    policy: BreakerPolicy = field(default_factory=BreakerPolicy)
    on_change: Callable[[BreakerChange], None] = lambda change: None
    state: CircuitBreakerState.ValueType = CircuitBreakerState.CIRCUIT_STATE_CLOSED
    failures: int = 0
    trials: int = 0
    opened: int = 0
    since: float = 0.0
    held: bool = False
    reason: str = ""

    @property
    def cool_down(self) -> float:
        """How long it stays open this time, in the caller's unit."""
        doublings = min(max(self.opened - 1, 0), 64)
        return float(min(self.policy.cool_down * 2.0**doublings, self.policy.longest))

    def allows(self, now: float) -> bool:
        """May what it guards be tried now? An open breaker whose time has come goes half-open."""
        if self.state != CircuitBreakerState.CIRCUIT_STATE_OPEN:
            return True
        if self.held or now - self.since < self.cool_down:
            return False
        self._become(CircuitBreakerState.CIRCUIT_STATE_HALF_OPEN, now, "cooled down")
        return True

    def succeeded(self, now: float) -> None:
        """What it guards has worked."""
        self.failures = 0
        if self.state != CircuitBreakerState.CIRCUIT_STATE_HALF_OPEN:
            return  # Closed; or open, and this is the late end of something begun before.
        self.trials += 1
        if self.trials >= self.policy.successes:
            self._become(CircuitBreakerState.CIRCUIT_STATE_CLOSED, now, "works again")

    def failed(self, now: float, reason: str) -> None:
        """What it guards has failed.

        Args:
            now: The time, in the caller's unit.
            reason: For people.
        """
        if self.state == CircuitBreakerState.CIRCUIT_STATE_OPEN:
            return
        self.failures += 1
        if self.state == CircuitBreakerState.CIRCUIT_STATE_HALF_OPEN:
            self._become(CircuitBreakerState.CIRCUIT_STATE_OPEN, now, f"trial failed: {reason}")
        elif self.failures >= self.policy.threshold:
            why = f"{self.failures} failures in a row, the last: {reason}"
            self._become(CircuitBreakerState.CIRCUIT_STATE_OPEN, now, why)

    def force(self, state: CircuitBreakerState.ValueType, now: float, reason: str) -> None:
        """Do what somebody asks for. One that was opened so stays open until it is forced again.

        Raises:
            ValueError: ``state`` is none of closed, open, half-open.
        """
        if state not in STATES:
            raise ValueError("state must be closed, open or half_open")
        self._become(state, now, reason)
        self.held = state == CircuitBreakerState.CIRCUIT_STATE_OPEN

    def _become(self, state: CircuitBreakerState.ValueType, now: float, reason: str) -> None:
        before, self.state = self.state, state
        self.since, self.reason, self.held = now, reason, False
        self.failures = self.trials = 0
        if state == CircuitBreakerState.CIRCUIT_STATE_CLOSED:
            self.opened = 0
        elif state == CircuitBreakerState.CIRCUIT_STATE_OPEN:
            self.opened += 1
        if before != state:
            self.on_change(BreakerChange(self.name, before, state, reason))

    def state_dict(self) -> dict[str, Any]:
        """What must survive, JSON-able."""
        return {name: getattr(self, name) for name in _SAVED}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Be as :meth:`state_dict` saw it; nobody is told."""
        for name in _SAVED:
            setattr(self, name, saved[name])


_SAVED = ("state", "failures", "trials", "opened", "since", "held", "reason")
