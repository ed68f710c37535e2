"""Learning-rate schedules as pure functions of the step.

They give what torch's ``LinearLR`` followed (``SequentialLR``) by ``LambdaLR``,
``CosineAnnealingLR``, ``StepLR``, ``LinearLR`` or ``OneCycleLR`` gives, but need no state: any
step's factor can be asked for. ``wsd`` is warm-up, stable, decay (Hu et al., *MiniCPM*, 2024,
https://arxiv.org/abs/2404.06395, section 4) with a linear decay.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tolaria_bus.tolaria.engine.numbers import is_number, is_whole

KINDS = ("constant", "cosine", "step", "linear", "one_cycle", "wsd")
_WSD_DECAY_PART = 5


class LearningRateRefused(ValueError):
    """A rate, factor or schedule that can't be used: ``field``, ``value``, what is ``allowed``."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} is {value!r}; allowed: {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the rate goes over a run. Every length is in optimizer steps.

    Attributes:
        kind: ``constant``, ``cosine``, ``step``, ``linear``, ``one_cycle`` or ``wsd``.
        warmup_steps: The factor rises linearly to 1 over so many steps; then the kind begins.
        warmup_start: The factor of the first step, where there is a warm-up.
        min_factor: ``cosine``, ``linear``, ``one_cycle``, ``wsd``: where it ends, and stays.
        step_size: ``step``: how often the factor drops; None: three times over the run.
        gamma: ``step``: what it is multiplied by at each drop.
        start_factor: ``one_cycle``: where it begins; from there it rises to 1.
        rise: ``one_cycle``: the share of the run in which it rises.
        decay_steps: ``wsd``: how many steps before the run's end the decay begins; None: a fifth.
        groups: Schedules of parameter groups that have one of their own, by the group's name.
    """

    kind: str = "constant"
    warmup_steps: int = 0
    warmup_start: float = 0.1
    min_factor: float = 0.0
    step_size: int | None = None
    gamma: float = 0.1
    start_factor: float = 0.04
    rise: float = 0.3
    decay_steps: int | None = None
    groups: "Mapping[str, Schedule]" = field(default_factory=dict)

    @classmethod
    def parse(cls, value: "Schedule | str | Mapping[str, Any] | None") -> "Schedule":
        """Return the schedule that a job or a setting asks for: a kind's name, or a mapping.

        Raises:
            LearningRateRefused: naming the field, its value and what is allowed.
        """
        if isinstance(value, Schedule):
            return value
        if value is None:
            return cls()
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            raise LearningRateRefused("schedule", value, "a kind's name, or a mapping with 'kind'")
        known = [field.name for field in fields(cls)]
        for name in value:
            if name not in known:
                raise LearningRateRefused(
                    "schedule", name, f"a mapping with the fields {', '.join(known)}"
                )
        own = value.get("groups", {})
        if not isinstance(own, Mapping):
            raise LearningRateRefused("schedule.groups", own, "a mapping from group to schedule")
        parsed = {str(name): cls.parse(schedule) for name, schedule in own.items()}
        schedule = cls(**{**value, "groups": parsed})
        schedule._check()
        return schedule

    def of(self, group: str) -> "Schedule":
        """Return a parameter group's schedule."""
        return self.groups.get(group, self)

    def _check(self) -> None:
        if self.kind not in KINDS:
            raise LearningRateRefused("schedule.kind", self.kind, ", ".join(KINDS))
        whole("schedule.warmup_steps", self.warmup_steps, 0)
        for name in ("step_size", "decay_steps"):
            value = getattr(self, name)
            if value is not None:
                whole(f"schedule.{name}", value, 1)
        for name, schedule in self.groups.items():
            if schedule.groups:
                raise LearningRateRefused(
                    f"schedule.groups.{name}", "groups", "a schedule without groups"
                )
        _fraction("schedule.warmup_start", self.warmup_start, zero=False)
        _fraction("schedule.min_factor", self.min_factor, zero=True)
        _fraction("schedule.gamma", self.gamma, zero=False)
        _fraction("schedule.start_factor", self.start_factor, zero=False)
        _fraction("schedule.rise", self.rise, zero=False)


def factor_at(schedule: Schedule, step: int, total_steps: int) -> float:
    """Return what the base rate is multiplied by after ``step`` steps of ``total_steps``."""
    if step < schedule.warmup_steps:
        return warmup(step, schedule.warmup_steps, schedule.warmup_start)
    step -= schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    length = max(total_steps - schedule.warmup_steps, 1)
    least = schedule.min_factor
    if schedule.kind == "cosine":
        return cosine(step, length, least)
    if schedule.kind == "linear":
        return linear(step, length, least)
    if schedule.kind == "one_cycle":
        return one_cycle(step, length, schedule.rise, schedule.start_factor, least)
    if schedule.kind == "wsd":
        decay = min(schedule.decay_steps or max(length // _WSD_DECAY_PART, 1), length)
        return linear(max(step - (length - decay), 0), decay, least)
    return staircase(step, schedule.step_size or max(length // 3, 1), schedule.gamma)


def warmup(step: int, steps: int, start: float) -> float:
    """Rise linearly from ``start`` to 1 over ``steps``."""
    return start + (1.0 - start) * (min(step, steps) / steps)


def cosine(step: int, length: int, min_factor: float) -> float:
    """Half a cosine from 1 to ``min_factor`` over ``length``; then stay there."""
    return cosine_between(1.0, min_factor, min(step / length, 1.0))


def linear(step: int, length: int, min_factor: float) -> float:
    """Fall linearly from 1 to ``min_factor`` over ``length``; then stay there."""
    if step >= length:
        return min_factor
    return 1.0 + (min_factor - 1.0) * (step / length)


def one_cycle(step: int, length: int, rise: float, start: float, min_factor: float) -> float:
    """Half a cosine up from ``start`` to 1, then half a cosine down to ``min_factor``.

    As torch's ``OneCycleLR``: the peak is at step ``rise * length - 1``, the end at ``length - 1``.
    """
    peak, end = max(rise * length - 1.0, 0.0), length - 1.0
    if step < peak:
        return cosine_between(start, 1.0, step / peak)
    return cosine_between(
        1.0, min_factor, min((step - peak) / (end - peak), 1.0) if end > peak else 1.0
    )


def cosine_between(begin: float, end: float, progress: float) -> float:
    """Half a cosine from ``begin`` to ``end``; ``progress`` is from 0 to 1."""
    return end + (begin - end) * (1.0 + math.cos(math.pi * progress)) / 2.0


def staircase(step: int, step_size: int, gamma: float) -> float:
    """Multiply by ``gamma`` after every ``step_size`` steps."""
    return float(gamma ** (step // step_size))


def whole(field: str, value: object, least: int) -> int:
    """Return ``value`` if it is a whole number of at least ``least``.

    Raises:
        LearningRateRefused: it isn't.
    """
    if not is_whole(value, least):
        raise LearningRateRefused(field, value, f"a whole number, {least} or more")
    return value


def _fraction(field: str, value: object, *, zero: bool) -> None:
    if not is_number(value) or not 0 <= value <= 1 or (value == 0 and not zero):
        allowed = "a number from 0 to 1" if zero else "a number above 0 and at most 1"
        raise LearningRateRefused(field, value, allowed)
