"""Making optimizers: which classes there are, what they take, their fastest form here.

A job names one, or brings a factory of its own.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tolaria_bus.tolaria.engine.hyperparameters import OptimizerRefused, check, settable
from tolaria_bus.tolaria.engine.job_errors import JobError, user_error

Factory = Callable[[list[nn.Parameter]], Optimizer]

DEFAULT_LEARNING_RATE = 1e-3
UNUSABLE = {
    "LBFGS": "it runs the model many times in one step",
    "SparseAdam": "it takes sparse gradients alone",
}
_FUSED_ON = frozenset({"cpu", "cuda"})


def torch_classes() -> dict[str, type[Optimizer]]:
    """Return torch's optimizers that can be used here, by their names."""
    return {
        name: found
        for name, found in vars(torch.optim).items()
        if inspect.isclass(found)
        and issubclass(found, Optimizer)
        and found is not Optimizer
        and name not in UNUSABLE
    }


def find(name: str, own: Mapping[str, type[Optimizer]] | None = None) -> type[Optimizer]:
    """Return an optimizer's class by its name, in whatever case.

    Args:
        name: As torch has it: ``AdamW``.
        own: Classes that are known besides torch's, and before them.

    Raises:
        OptimizerRefused: there is none of that name, or it can't be used here.
    """
    known = {**torch_classes(), **(own or {})}
    by_lower = {known_name.lower(): found for known_name, found in known.items()}
    if isinstance(name, str) and name.lower() in by_lower:
        return by_lower[name.lower()]
    raise OptimizerRefused("optimizer", name, ", ".join(sorted(known)))


def options(cls: type[Optimizer], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``cls`` is to be made with, if every one of ``values`` is allowed.

    Beside the hyperparameters that may change in a run, those count that decide the shape of the
    state and are true or false: ``amsgrad``, ``centered``, ``maximize``, ….

    Raises:
        OptimizerRefused: naming the field, its value and what is allowed.
    """
    # Of two dimensions: Muon takes nothing else.
    probe = _call(cls, [{"params": [nn.Parameter(torch.zeros(2, 2))]}], {})
    # Before momentum, that only SGD takes up later, or nesterov, that asks for it, is judged.
    group = {**probe.param_groups[0], **{k: v for k, v in values.items() if k == "momentum"}}
    flags = [
        name
        for name, value in probe.defaults.items()
        if isinstance(value, bool) and name not in {*settable(probe), *_NOT_OPTIONS}
    ]
    found: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if name in flags and value in (0, 1):
            found[name] = bool(value)
        elif name in flags:
            raise OptimizerRefused(name, value, "true or false")
        else:
            rest[name] = value
    return {**found, **check(probe, group, rest)}


_NOT_OPTIONS = frozenset({"foreach", "fused", "capturable", "differentiable"})


def fastest(cls: type[Optimizer], params: Iterable[nn.Parameter]) -> dict[str, bool]:
    """Return the arguments that ask for torch's fastest form of ``cls`` for these parameters.

    Fused on CPU and CUDA where the class has it (a fifth of the time of the plain loop on a CPU),
    else foreach where it has that.
    """
    takes = inspect.signature(cls).parameters
    params = list(params)
    if "fused" in takes and all(
        p.device.type in _FUSED_ON and p.is_floating_point() for p in params
    ):
        return {"fused": True}
    return {"foreach": True} if "foreach" in takes else {}


def make(
    cls: type[Optimizer], groups: list[dict[str, Any]], values: Mapping[str, Any]
) -> Optimizer:
    """Make an optimizer over ``groups`` with ``values``, in its fastest form that works.

    Raises:
        Exception: what the class's constructor raised.
    """
    members = [member for group in groups for member in group["params"]]
    form = fastest(cls, [m[1] if isinstance(m, tuple) else m for m in members])
    try:
        return _call(cls, groups, {**values, **form})
    except RuntimeError:
        # Torch says only so that it has no fused kernel for a device or type.
        if not form.pop("fused", False):
            raise
    return _call(cls, groups, values)


def _call(
    cls: type[Optimizer], groups: list[dict[str, Any]], values: Mapping[str, Any]
) -> Optimizer:
    # Copies: the constructor fills its groups in.
    made: Callable[..., Optimizer] = cls
    return made([dict(group) for group in groups], **values)


def factory_of(wanted: str | Mapping[str, Any]) -> Factory:
    """Return a factory for an optimizer that a job names.

    Args:
        wanted: The class's name, or a mapping with ``name``, ``lr`` and other hyperparameters.

    Raises:
        JobError: there is no such optimizer, or a value is not allowed.
    """
    given = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    name = given.pop("name", "")
    lr = given.pop("lr", DEFAULT_LEARNING_RATE)
    try:
        cls = find(name)
        values = options(cls, given)
    except OptimizerRefused as error:
        raise JobError(f"the job's optimizer: {error}") from error
    return lambda params: make(cls, [{"params": params}], {**values, "lr": lr})


def default_optimizer(
    params: Iterable[nn.Parameter], lr: float = DEFAULT_LEARNING_RATE
) -> Optimizer:
    """AdamW, in torch's fastest form for where the parameters are."""
    return make(find("AdamW"), [{"params": list(params)}], {"lr": lr})


def made_by(factory: Factory, params: list[nn.Parameter]) -> Optimizer:
    """Return what a job's factory makes.

    Raises:
        JobError: it failed, or made something that can't be used here.
    """
    try:
        optimizer: object = factory(params)
    except Exception as error:
        raise user_error("the job", "optimizer(params)", error) from error
    if not isinstance(optimizer, Optimizer):
        raise JobError(
            f"optimizer(params) returned a {type(optimizer).__name__}; it must be a torch Optimizer"
        )
    if (why := UNUSABLE.get(type(optimizer).__name__)) is not None:
        raise JobError(f"optimizer(params) made {type(optimizer).__name__}: {why}")
    return optimizer
