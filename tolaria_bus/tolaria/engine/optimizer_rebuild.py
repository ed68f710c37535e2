"""Going on with another class of optimizer: judged first, made at a fence."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch.optim import Optimizer

from tolaria_bus.tolaria.engine.job_errors import in_one_line
from tolaria_bus.tolaria.engine.optimizer_carry import Carried, carry_over
from tolaria_bus.tolaria.engine.optimizer_classes import find, make, options
from tolaria_bus.tolaria.engine.optimizer_groups import as_arguments


class RebuildFailed(RuntimeError):
    """The new optimizer could not be made. The old one is in use, as it was."""


class Rebuild(NamedTuple):
    """A change of the optimizer's class that has been judged."""

    cls: type[Optimizer]
    values: Mapping[str, Any]


def plan_rebuild(
    name: str, values: Mapping[str, Any], own: Mapping[str, type[Optimizer]]
) -> Rebuild:
    """Judge a change of class.

    Args:
        name: A class of ``torch.optim`` or of ``own``, in whatever case.
        values: Hyperparameters, for every group; the class's defaults hold for the others.
        own: Classes that are known besides torch's.

    Raises:
        OptimizerRefused: naming the field, its value and what is allowed.
    """
    cls = find(name, own)
    return Rebuild(cls, options(cls, values))


def rebuilt(old: Optimizer, plan: Rebuild) -> tuple[Optimizer, Carried]:
    """Return the optimizer to go on with, and what became of the state; ``old`` isn't changed.

    Raises:
        RebuildFailed: it could not be made.
    """
    try:
        made = make(plan.cls, as_arguments(old), plan.values)
        return made, carry_over(old, made)
    except Exception as error:
        raise RebuildFailed(
            f"{plan.cls.__name__} could not be made, {type(old).__name__} goes on: "
            f"{in_one_line(error)}"
        ) from error
