"""Which hyperparameters of a torch optimizer may change while it runs, and to what.

The ranges are torch's own constructors', except that ``eps`` must be above 0. What decides the
shape of the optimizer's state or its implementation (amsgrad, fused, …) is left out: a change in
the middle of a run would fail in the next step.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import SGD, Optimizer

from tolaria_bus.tolaria.engine.numbers import is_number


class OptimizerRefused(ValueError):
    """A change that can't be made: ``field``, ``value``, what is ``allowed``."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} is {value!r}; allowed: {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


_Range = tuple[Callable[[float], bool], str]
_NOT_NEGATIVE: _Range = (lambda x: x >= 0, "a finite number, 0 or more")
_POSITIVE: _Range = (lambda x: x > 0, "a finite number above 0")
_BELOW_ONE: _Range = (lambda x: 0 <= x < 1, "a number from 0 to below 1")
_UP_TO_ONE: _Range = (lambda x: 0 <= x <= 1, "a number from 0 to 1")

_RANGES: dict[str, _Range] = {
    "weight_decay": _NOT_NEGATIVE,
    "eps": _POSITIVE,
    "momentum": _BELOW_ONE,
    "dampening": _UP_TO_ONE,
    "alpha": _BELOW_ONE,
    "rho": _UP_TO_ONE,
    "lr_decay": _NOT_NEGATIVE,
    "momentum_decay": _NOT_NEGATIVE,
    "lambd": _NOT_NEGATIVE,
    "t0": _NOT_NEGATIVE,
}
_BETAS = {"beta1": 0, "beta2": 1}
_NOT_SETTABLE_HERE = "change it with a LEARNING_RATE command"


def settable(optimizer: Optimizer) -> list[str]:
    """Return the names of what ``check`` would take for this optimizer, in torch's order."""
    return [name for name, value in optimizer.defaults.items() if _is_settable(name, value)]


def _is_settable(name: str, default: object) -> bool:
    # Adafactor's eps is a pair, which no range here is about.
    return name in {"betas", "nesterov"} or (name in _RANGES and isinstance(default, (int, float)))


def check(
    optimizer: Optimizer, group: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``values`` as the group will hold them, if every one of them is allowed.

    Raises:
        OptimizerRefused: naming the field, its value and what is allowed.
    """
    known = settable(optimizer)
    accepted: dict[str, Any] = {}
    for field, value in values.items():
        if field == "lr":
            raise OptimizerRefused(field, value, _NOT_SETTABLE_HERE)
        if field in _BETAS and "betas" in known:
            betas = list(accepted.get("betas", group["betas"]))
            betas[_BETAS[field]] = _number(field, value, _BELOW_ONE)
            accepted["betas"] = tuple(betas)
        elif field not in known:
            named = "hyperparameter" if isinstance(field, str) else "field"
            raise OptimizerRefused(
                named, field, f"{', '.join(known)} (of {type(optimizer).__name__})"
            )
        elif field == "betas":
            accepted[field] = _betas(value, len(group["betas"]))
        elif field == "nesterov":
            accepted[field] = _flag(field, value)
        else:
            accepted[field] = _number(field, value, _RANGES[field])
    _check_momentum(optimizer, group, accepted)
    return accepted


def _number(field: str, value: object, bounds: _Range) -> float:
    inside, allowed = bounds
    if not is_number(value) or not inside(value):
        raise OptimizerRefused(field, value, allowed)
    return float(value)


def _betas(value: object, count: int) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise OptimizerRefused("betas", value, f"a list of {count} numbers from 0 to below 1")
    return tuple(_number("betas", beta, _BELOW_ONE) for beta in value)


def _flag(field: str, value: object) -> bool:
    # The wire's map of floats has 1.0 for true.
    if value in (0, 1):
        return bool(value)
    raise OptimizerRefused(field, value, "true or false")


def _check_momentum(
    optimizer: Optimizer, group: Mapping[str, Any], accepted: Mapping[str, Any]
) -> None:
    after = {**group, **accepted}
    momentum = after.get("momentum", 0)
    if after.get("nesterov") and "momentum" in after:
        if not momentum:
            raise OptimizerRefused("momentum", momentum, "above 0 while nesterov is on")
        if after.get("dampening"):
            raise OptimizerRefused("dampening", after["dampening"], "0 while nesterov is on")
    # Only SGD makes a momentum buffer later; the others look for one that was made at the start.
    late = accepted.get("momentum") and not group.get("momentum")
    if late and not isinstance(optimizer, SGD):
        name = type(optimizer).__name__
        raise OptimizerRefused("momentum", momentum, f"0: {name} began without momentum")
