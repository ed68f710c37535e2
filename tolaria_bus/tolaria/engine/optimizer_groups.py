"""An optimizer's groups, addressed by name, and the parameters that join and leave them.

Everything happens in place: whoever holds a group's list, or the optimizer, sees it; the state of
the parameters that stay isn't touched. ``names`` is what the optimizer's parameters are called;
these functions keep it current.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tolaria_bus.tolaria.engine.optimizer_state import NOT_HYPERPARAMETERS


def group_names(optimizer: Optimizer) -> list[str]:
    """Return the names of the groups, in order."""
    return [group["name"] for group in optimizer.param_groups]


def find_group(optimizer: Optimizer, name: str) -> dict[str, Any] | None:
    """Return the group of a name; None: there is none."""
    return next((group for group in optimizer.param_groups if group["name"] == name), None)


def as_arguments(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the groups with their rates, as an optimizer's constructor takes them."""
    return [
        {
            "params": list(zip(group["param_names"], group["params"], strict=True))
            if "param_names" in group
            else list(group["params"]),
            "name": group["name"],
            "lr": group["lr"],
        }
        for group in optimizer.param_groups
    ]


def add(
    optimizer: Optimizer,
    group: str,
    named: list[tuple[str, nn.Parameter]],
    names: dict[nn.Parameter, str],
) -> None:
    """Let parameters join a group; a new one has the first group's hyperparameters."""
    host = optimizer.param_groups[0]
    found = find_group(optimizer, group)
    if found is None:
        copied = {k: v for k, v in host.items() if k not in NOT_HYPERPARAMETERS}
        members: list[Any] = named if "param_names" in host else [p for _, p in named]
        optimizer.add_param_group({"params": members, "name": group, **copied})
    else:
        found["params"].extend(p for _, p in named)
        if "param_names" in found:
            found["param_names"].extend(name for name, _ in named)
    names.update((parameter, name) for name, parameter in named)


def drop(
    optimizer: Optimizer, leaving: Collection[nn.Parameter], names: dict[nn.Parameter, str]
) -> None:
    """Let parameters leave, with their state; a group left empty goes too."""
    groups = optimizer.param_groups
    for group in groups:
        if "param_names" in group:
            pairs = zip(group["param_names"], group["params"], strict=True)
            group["param_names"] = [name for name, p in pairs if p not in leaving]
        # In place, as somebody may hold the list.
        group["params"][:] = [p for p in group["params"] if p not in leaving]
    groups[:] = [group for group in groups if group["params"]]
    for parameter in leaving:
        optimizer.state.pop(parameter, None)
        del names[parameter]


def regroup(
    optimizer: Optimizer,
    wanted: Mapping[str, list[str]],
    parameters: Mapping[str, nn.Parameter],
    names: dict[nn.Parameter, str],
) -> None:
    """Make the groups those of ``wanted``, in its order; what is right already stays.

    Args:
        optimizer: Whose groups.
        wanted: The names of each group's parameters.
        parameters: The model's, by name.
        names: Kept current.
    """
    groups = optimizer.param_groups
    for group in list(groups):
        members = [parameters.get(name) for name in wanted.get(group["name"], [])]
        if [id(p) for p in group["params"]] != [id(p) for p in members]:
            drop(optimizer, set(group["params"]), names)
    for name in wanted.keys() - set(group_names(optimizer)):
        add(optimizer, name, [(member, parameters[member]) for member in wanted[name]], names)
    by_name = {group["name"]: group for group in groups}
    groups[:] = [by_name[name] for name in wanted]
