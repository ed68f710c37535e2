"""An optimizer's state by the names of its parameters, out of one process and into another.

Torch keys it by the parameter's place in the groups, which changes with the structure of the model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# What a group holds besides its hyperparameters.
NOT_HYPERPARAMETERS = frozenset({"params", "param_names", "name", "initial_lr"})
# Groups of the job's own optimizer; others come and go with seeds.
_HOST_PREFIX = "host"


class OptimizerStateMismatch(ValueError):
    """A saved state that isn't of this optimizer or of these parameters; nothing was loaded."""


def export(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state's tensors by ``parameter/key``, and the rest as JSON values."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for parameter, name in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                rest.setdefault(name, {})[key] = value
    groups = [
        {
            "name": group["name"],
            "parameters": [names[parameter] for parameter in group["params"]],
            "hyperparameters": {
                key: float(value) if isinstance(value, Tensor) else value
                for key, value in group.items()
                if key not in NOT_HYPERPARAMETERS
            },
        }
        for group in optimizer.param_groups
    ]
    shapes = {name: list(parameter.shape) for parameter, name in names.items()}
    name = type(optimizer).__name__
    return tensors, {"class": name, "groups": groups, "shapes": shapes, "rest": rest}


def matched(
    parameters: Mapping[str, nn.Parameter],
    present: Mapping[str, list[str]],
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return the saved state by parameter and key, if all of it is for this optimizer.

    Args:
        parameters: The model's, by name.
        present: The names of each group's parameters, as the groups are now.
        tensors: As ``export`` returned them.
        meta: The same.

    Raises:
        OptimizerStateMismatch: it isn't.
    """
    saved: dict[str, list[str]] = {g["name"]: g["parameters"] for g in meta["groups"]}
    _check_host(saved, present)
    for group, names in saved.items():
        for name in names:
            if name not in parameters:
                raise OptimizerStateMismatch(f"the model has no {name!r} of the group {group!r}")
            before, now = meta["shapes"][name], list(parameters[name].shape)
            if before != now:
                raise OptimizerStateMismatch(f"{name} has the shape {now}, the saved one {before}")
    known = {name for names in saved.values() for name in names}
    state: dict[str, dict[str, Any]] = {name: dict(v) for name, v in meta["rest"].items()}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        state.setdefault(name, {})[key] = tensor
    for name in state:
        if name not in known:
            raise OptimizerStateMismatch(f"there is state of {name!r}, which no group has")
    return state


def saved_hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved group's hyperparameters as torch has them: JSON has no tuples."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in group["hyperparameters"].items()
    }


def load_parameter(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: nn.Parameter,
    saved: Mapping[str, Any],
) -> None:
    """Make one parameter's state the saved one; no state if nothing was saved."""
    if not saved:
        optimizer.state.pop(parameter, None)
        return
    present = optimizer.state.get(parameter, {})
    loaded: dict[str, Any] = {}
    for key, value in saved.items():
        old = present.get(key)
        if not isinstance(value, Tensor):
            loaded[key] = value
        elif isinstance(old, Tensor) and old.shape == value.shape and old.dtype == value.dtype:
            with torch.no_grad():
                loaded[key] = old.copy_(value)
        else:
            # Torch keeps the step count on the host, unless a kernel on the device counts it.
            on_host = key == "step" and not (group.get("capturable") or group.get("fused"))
            device = torch.device("cpu") if on_host else parameter.device
            loaded[key] = _laid_out(value, parameter, device)
    optimizer.state[parameter] = loaded


def _laid_out(value: Tensor, parameter: nn.Parameter, device: torch.device) -> Tensor:
    """Copy a state tensor; in its parameter's memory format, as fused kernels ask for."""
    if value.shape != parameter.shape:
        return value.detach().to(device, copy=True)
    empty = torch.empty_like(parameter, dtype=value.dtype, device=device, requires_grad=False)
    return empty.copy_(value)


def _check_host(saved: Mapping[str, list[str]], present: Mapping[str, list[str]]) -> None:
    for group in sorted({*saved, *present}):
        if group.partition(".")[0] != _HOST_PREFIX:
            continue
        before, now = saved.get(group, []), present.get(group, [])
        if before != now:
            odd = sorted(set(before) ^ set(now)) or ["the order"]
            raise OptimizerStateMismatch(
                f"the group {group!r} differs from the saved one in: {', '.join(odd[:5])}"
            )
