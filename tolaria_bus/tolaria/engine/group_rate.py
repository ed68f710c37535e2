"""One parameter group's learning rate, before its schedule: a base, and a new group's growth.

Both are pure functions of the step. A change of the base begins from what it is at that moment, and
never takes it out of its bounds.
"""

from dataclasses import dataclass
from typing import NamedTuple

from tolaria_bus.tolaria.engine.numbers import is_number
from tolaria_bus.tolaria.engine.schedule import LearningRateRefused

NEW_GROUP_START = 0.1
"""The share of its rate that a new group begins with."""


class RateChange(NamedTuple):
    """A change of base rates that has been judged: a new rate, or a factor."""

    rate: float | None
    factor: float | None
    warmup_steps: int
    group: str


@dataclass(slots=True)
class GroupRate:
    """One group's rate: a base that moves from ``start`` to ``base`` in ``ramp_steps`` steps.

    Attributes:
        start: Where the base comes from.
        base: Where it goes.
        ramp_from: The step at which it began to move.
        ramp_steps: Over how many steps it moves; 0: it is there.
        born: The step at which the group joined.
        growth_steps: Over how many steps it grows to its whole rate; 0: it has it.
        applied: What was last set, schedule and growth included.
    """

    start: float
    base: float
    ramp_from: int = 0
    ramp_steps: int = 0
    born: int = 0
    growth_steps: int = 0
    applied: float = 0.0

    def base_at(self, step: int) -> float:
        """Return the base for the step after ``step`` steps done."""
        done = step - self.ramp_from
        if done >= self.ramp_steps:
            return self.base
        return self.start + (self.base - self.start) * (max(done, 0) / self.ramp_steps)

    def growth_at(self, step: int) -> float:
        """Return the share that a new group has of its rate then; 1 where it has grown."""
        age = step - self.born
        if age >= self.growth_steps:
            return 1.0
        return NEW_GROUP_START + (1.0 - NEW_GROUP_START) * (max(age, 0) / self.growth_steps)

    def change(self, change: RateChange, step: int) -> None:
        """Let the base move, from what it is now, to where a change wants it."""
        self.start = self.base_at(step)
        if change.factor is not None:
            self.base = self.start * change.factor
        elif change.rate is not None:
            self.base = change.rate
        self.ramp_from, self.ramp_steps = step, change.warmup_steps

    def check_factor(self, factor: float, most: float) -> None:
        """Raise if a factor would take the base out of its bounds, wherever it is on its way.

        Raises:
            LearningRateRefused: it would.
        """
        ends = (self.start * factor, self.base * factor)
        if not 0 < min(ends) <= max(ends) <= most:
            allowed = f"a factor that keeps the rate above 0 and at most {most:g}"
            raise LearningRateRefused("factor", factor, allowed)


def check_rate(field: str, value: object, most: float) -> None:
    """Raise if ``value`` can't be a base rate.

    Raises:
        LearningRateRefused: naming the field, its value and what is allowed.
    """
    if not is_number(value) or not 0 < value <= most:
        raise LearningRateRefused(field, value, f"a finite number above 0 and at most {most:g}")
