"""The one authority over learning rates.

A group's rate is ``base(step) x factor(step) x growth(step)``:

* *base*: what the optimizer was made with, or what a dated override set since;
* *factor*: the group's schedule, a pure function of the step (see ``schedule.py``);
* *growth*: a group that joins while the run is on starts at 10 % and grows linearly to 100 %.

Nothing is accumulated from step to step, so a restored run has the same rates to the last bit. A
rate that somebody else wrote into the optimizer is put right before the next step and reported;
no weight sees it. ``apply`` costs about 1 µs for each group.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from tolaria_bus.tolaria.engine.figures import Figure
from tolaria_bus.tolaria.engine.group_rate import GroupRate, RateChange, check_rate
from tolaria_bus.tolaria.engine.job_errors import JobError
from tolaria_bus.tolaria.engine.numbers import is_number
from tolaria_bus.tolaria.engine.schedule import LearningRateRefused, Schedule, factor_at, whole

MAX_LEARNING_RATE = 100.0
NEW_GROUP_EPOCHS = 10

__all__ = [
    "Correction",
    "LearningRateController",
    "LearningRateRefused",
    "ParameterGroups",
    "RateChange",
    "Schedule",
    "factor_at",
]


class ParameterGroups(Protocol):
    """What has parameter groups: a torch optimizer, or the manager of one."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups; each has ``lr``, and ``name`` where it is to be addressed by one."""


class Correction(NamedTuple):
    """A rate that was not what the controller had set: it has been put right."""

    group: str
    found: float
    expected: float


class LearningRateController:
    """Sets the rate of each parameter group before each step.

    Args:
        optimizer: Whose groups; followed as they come and go.
        schedule: As the job or a setting gave it; see ``Schedule.parse``.
        total_steps: The run's length in optimizer steps, for the schedules that end.
        steps_per_epoch: Sets the default warm-up of new groups: ten epochs.
        new_group_warmup_steps: That warm-up in steps, where it is set.
        max_lr: No base rate may exceed it.

    Attributes:
        corrections: Rates put right in this process.

    Raises:
        LearningRateRefused: the schedule is not one, or names a group that isn't there.
        JobError: the rate that the job's optimizer was made with is out of range.
    """

    def __init__(
        self,
        optimizer: ParameterGroups,
        schedule: "Schedule | str | Mapping[str, Any] | None",
        total_steps: int,
        *,
        steps_per_epoch: int = 100,
        new_group_warmup_steps: int | None = None,
        max_lr: float = MAX_LEARNING_RATE,
    ) -> None:
        self._optimizer = optimizer
        self.schedule = Schedule.parse(schedule)
        self._total_steps = max(total_steps, 1)
        default = NEW_GROUP_EPOCHS * steps_per_epoch
        self._growth_steps = default if new_group_warmup_steps is None else new_group_warmup_steps
        self._max_lr = max_lr
        self.corrections = 0
        self._rates: dict[str, GroupRate] = {}
        for name, group in self._groups():
            # A tensor as the rate would be compared, and copied to the host, at each step.
            rate = group["lr"] = float(group["lr"])
            try:
                check_rate("learning_rate", rate, self._max_lr)
            except LearningRateRefused as error:
                raise JobError(f"the job's optimizer, group {name!r}: {error}") from error
            self._rates[name] = GroupRate(start=rate, base=rate, applied=rate)
        for name in self.schedule.groups:
            if name not in self._rates:
                raise LearningRateRefused("schedule.groups", name, ", ".join(self._rates))

    def apply(self, step: int) -> tuple[Correction, ...]:
        """Set every group's rate for the step after ``step`` steps done.

        Returns:
            One ``Correction`` for each group whose rate somebody else had changed; mostly empty.
        """
        rates = self._rates
        groups = self._optimizer.param_groups
        if len(groups) != len(rates):
            self._follow(step)
        shared = factor_at(self.schedule, step, self._total_steps)
        own = self.schedule.groups
        corrections: tuple[Correction, ...] = ()
        for index, group in enumerate(groups):
            name = group["name"] if "name" in group else str(index)
            rate = rates.get(name)
            if rate is None:
                self._follow(step)
                return corrections + self.apply(step)
            # As in _wanted; the shared schedule is asked once for all groups.
            scheduled = (
                factor_at(own[name], step, self._total_steps) if own and name in own else shared
            )
            wanted = rate.base_at(step) * scheduled * rate.growth_at(step)
            found = group["lr"]
            if found != rate.applied:
                corrections += (Correction(name, float(found), rate.applied),)
                self.corrections += 1
                group["lr"] = wanted
            elif found != wanted:
                group["lr"] = wanted
            rate.applied = wanted
        return corrections

    def plan(
        self,
        *,
        rate: float | None = None,
        factor: float | None = None,
        warmup_steps: int = 0,
        group: str | None = None,
    ) -> RateChange:
        """Judge a change of base rates, to be made by ``commit``; nothing changes yet.

        Args:
            rate: The new base; or
            factor: what the base is multiplied by.
            warmup_steps: The base moves linearly from what it is then, over so many steps.
            group: Whose; None or empty: every group's.

        Raises:
            LearningRateRefused: naming the field, its value and what is allowed.
        """
        steps = whole("warmup_steps", warmup_steps, 0)
        if group and group not in self._rates:
            raise LearningRateRefused("group", group, ", ".join(self._rates))
        if (rate is None) == (factor is None):
            raise LearningRateRefused("learning_rate", rate, "exactly one of it and a factor")
        if rate is not None:
            check_rate("learning_rate", rate, self._max_lr)
        if factor is not None:
            self._check_factor(factor, group)
        return RateChange(rate, factor, steps, group or "")

    def commit(self, change: RateChange, step: int) -> dict[str, float]:
        """Make a planned change from ``step`` on; the schedule goes on from it.

        Returns:
            The new base by group.
        """
        bases: dict[str, float] = {}
        for name, group in self._groups():
            if change.group in {"", name} and name in self._rates:
                rate = self._rates[name]
                rate.change(change, step)
                bases[name] = rate.base
                # In force at once for whoever looks; a rate that was tampered with is apply's.
                if group["lr"] == rate.applied:
                    group["lr"] = rate.applied = self._wanted(name, rate, step)
        return bases

    def set_base(
        self, lr: float, step: int, warmup_steps: int = 0, group: str = ""
    ) -> dict[str, float]:
        """``plan`` and ``commit`` of a rate."""
        return self.commit(self.plan(rate=lr, warmup_steps=warmup_steps, group=group), step)

    def scale(
        self, by: float, step: int, warmup_steps: int = 0, group: str = ""
    ) -> dict[str, float]:
        """``plan`` and ``commit`` of a factor."""
        return self.commit(self.plan(factor=by, warmup_steps=warmup_steps, group=group), step)

    def adopt(self, name: str, step: int, warmup_steps: int | None = None) -> None:
        """Take on a group that joined the optimizer: the first group's base, at 10 % to begin.

        ``apply`` does the same for a group that it doesn't know.

        Raises:
            KeyError: the optimizer has no group of that name.
        """
        group = dict(self._groups())[name]
        host = next(iter(self._rates.values()))
        growth_steps = self._growth_steps if warmup_steps is None else warmup_steps
        self._rates[name] = GroupRate(
            start=host.start,
            base=host.base,
            ramp_from=host.ramp_from,
            ramp_steps=host.ramp_steps,
            born=step,
            growth_steps=growth_steps,
            applied=float(group["lr"]),
        )

    def release(self, name: str) -> None:
        """Forget a group that left the optimizer."""
        self._rates.pop(name, None)

    def rates(self) -> dict[str, float]:
        """Return the rate last set, by group."""
        return {name: rate.applied for name, rate in self._rates.items()}

    def figures(self, step: int) -> list[Figure]:
        """Return ``tolaria.lr_controller.*``: what makes up each group's rate after ``step`` steps.

        ``base`` is what was set, ``schedule_factor`` what the schedule makes of it, ``growth`` what
        a new group has of that: their product is ``learning_rate`` of the step to come.
        """
        found = [Figure("tolaria.lr_controller.corrections", self.corrections)]
        for name, rate in self._rates.items():
            about = {"group": name}
            factor = factor_at(self.schedule.of(name), step, self._total_steps)
            found += [
                Figure("tolaria.lr_controller.learning_rate", rate.applied, attributes=about),
                Figure("tolaria.lr_controller.base", rate.base_at(step), attributes=about),
                Figure("tolaria.lr_controller.schedule_factor", factor, attributes=about),
                Figure("tolaria.lr_controller.growth", rate.growth_at(step), attributes=about),
            ]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return all that differs from a fresh controller, as JSON values."""
        return {"groups": {name: asdict(rate) for name, rate in self._rates.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned, and set the rates that were set then.

        Raises:
            ValueError: the optimizer's groups are not those of the state.
        """
        saved = {name: GroupRate(**rate) for name, rate in state["groups"].items()}
        groups = dict(self._groups())
        if saved.keys() != groups.keys():
            raise ValueError(
                f"the saved learning rates are of the groups {sorted(saved)}, "
                f"the optimizer has {sorted(groups)}"
            )
        self._rates = saved
        for name, group in groups.items():
            group["lr"] = saved[name].applied

    def _groups(self) -> list[tuple[str, dict[str, Any]]]:
        groups = self._optimizer.param_groups
        return [(group.get("name", str(index)), group) for index, group in enumerate(groups)]

    def _follow(self, step: int) -> None:
        present = [name for name, _ in self._groups()]
        for name in present:
            if name not in self._rates:
                self.adopt(name, step)
        for name in self._rates.keys() - set(present):
            self.release(name)

    def _wanted(self, name: str, rate: GroupRate, step: int) -> float:
        scheduled = factor_at(self.schedule.of(name), step, self._total_steps)
        return rate.base_at(step) * scheduled * rate.growth_at(step)

    def _check_factor(self, factor: object, group: str | None) -> None:
        if not is_number(factor) or factor <= 0:
            raise LearningRateRefused("factor", factor, "a finite number above 0")
        for name, rate in self._rates.items():
            if group in {None, "", name}:
                rate.check_factor(factor, self._max_lr)
