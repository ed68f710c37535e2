"""The optimizer and everything that changes it while the run is on.

Parameters join and leave in place: the optimizer object stays, and the state (Adam's moments and
step counts) of every parameter that stays is the very same tensors as before. Outside, state is
keyed by the parameter's qualified name, so that it survives a process in which the parameters are
other objects, and a change of structure.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tolaria_bus.tolaria.engine.hyperparameters import OptimizerRefused, check, settable
from tolaria_bus.tolaria.engine.job_errors import JobError, user_error
from tolaria_bus.tolaria.engine.optimizer_state import (
    NOT_HYPERPARAMETERS,
    OptimizerStateMismatch,
    export,
    load_parameter,
    matched,
    saved_hyperparameters,
)

HOST_GROUP = "host"
DEFAULT_LEARNING_RATE = 1e-3

__all__ = [
    "DEFAULT_LEARNING_RATE",
    "HOST_GROUP",
    "OptimizerManager",
    "OptimizerRefused",
    "OptimizerStateMismatch",
    "default_optimizer",
]

Factory = Callable[[list[nn.Parameter]], Optimizer]


def default_optimizer(
    params: Iterable[nn.Parameter], lr: float = DEFAULT_LEARNING_RATE
) -> Optimizer:
    """AdamW, in torch's fastest form for where the parameters are.

    Fused on CPU and CUDA (a fifth of the time of the plain loop there), foreach elsewhere.
    """
    params = list(params)
    fused = all(p.device.type in {"cpu", "cuda"} and p.is_floating_point() for p in params)
    return torch.optim.AdamW(params, lr=lr, fused=fused, foreach=not fused)


class OptimizerManager:
    """Owns the optimizer of one model.

    Its groups are addressed by name: ``host`` (the first; further ones that the job's factory made
    are ``host.1``, ``host.2``, …) and, by the trainer's convention, ``seed:ID``.

    Args:
        factory: The job's ``optimizer(params)``, called with every parameter that needs a gradient;
            None: ``default_optimizer``.
        model: Whose parameters; already on its device.

    Raises:
        JobError: the factory failed, or made something that can't be used here.
    """

    def __init__(self, factory: Factory | None, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise JobError("the model has no parameter that needs a gradient")
        self._model = model
        self.optimizer = _make(factory or default_optimizer, [p for _, p in named])
        names = {id(parameter): name for name, parameter in named}
        self._names: dict[nn.Parameter, str] = {}
        for index, group in enumerate(self.optimizer.param_groups):
            group["name"] = f"{HOST_GROUP}.{index}" if index else HOST_GROUP
            for parameter in group["params"]:
                if id(parameter) not in names:
                    raise JobError("optimizer(params) optimizes a parameter that isn't the model's")
                self._names[parameter] = names[id(parameter)]

    @property
    def name(self) -> str:
        """The optimizer's class, as torch calls it: ``AdamW``."""
        return type(self.optimizer).__name__

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, as they are now."""
        return self.optimizer.param_groups

    def group_names(self) -> list[str]:
        """Return the names of the groups, in order."""
        return [group["name"] for group in self.param_groups]

    def parameter_names(self, group: str | None = None) -> list[str]:
        """Return the qualified names of a group's parameters (None: of all), in order."""
        return [
            self._names[parameter]
            for found in self.param_groups
            if group is None or found["name"] == group
            for parameter in found["params"]
        ]

    def add_parameters(
        self, group: str, parameters: Mapping[str, nn.Parameter] | Iterable[tuple[str, Any]]
    ) -> None:
        """Let parameters join, with no state yet, in a new group or one that exists.

        A new group has the host's hyperparameters as they are now; its rate is for the controller
        to set. Parameters are looked at by their qualified names in the model.

        Raises:
            ValueError: one of the names or parameters is optimized already, or none was given.
        """
        items = parameters.items() if isinstance(parameters, Mapping) else parameters
        named = [(name, p) for name, p in items if p.requires_grad]
        taken = set(self._names.values())
        doubles = [name for name, p in named if name in taken or p in self._names]
        if doubles:
            raise ValueError(f"optimized already: {', '.join(doubles)}")
        if not named:
            raise ValueError(f"there is no parameter to optimize for the group {group!r}")
        host = self.param_groups[0]
        found = self._group(group)
        if found is None:
            copied = {k: v for k, v in host.items() if k not in NOT_HYPERPARAMETERS}
            members: list[Any] = named if "param_names" in host else [p for _, p in named]
            self.optimizer.add_param_group({"params": members, "name": group, **copied})
        else:
            found["params"].extend(p for _, p in named)
            if "param_names" in found:
                found["param_names"].extend(name for name, _ in named)
        self._names.update((parameter, name) for name, parameter in named)

    def remove_parameters(self, names: Iterable[str]) -> None:
        """Let parameters leave, with their state; a group left empty goes too.

        The others' state is not touched: the same tensors under the same parameters.

        Raises:
            ValueError: a name isn't optimized, or no parameter would be left; nothing removed.
        """
        leaving = set(names)
        unknown = leaving - set(self._names.values())
        if unknown:
            raise ValueError(f"not optimized: {', '.join(sorted(unknown))}")
        if len(leaving) == len(self._names):
            raise ValueError("no parameter would be left")
        self._drop({p for p, name in self._names.items() if name in leaving})

    def remove_group(self, group: str) -> None:
        """Let a group leave, with its parameters and their state.

        Raises:
            ValueError: there is no such group, or no parameter would be left; nothing removed.
        """
        names = self.parameter_names(group)
        if not names:
            raise ValueError(f"there is no group {group!r}; there are {self.group_names()}")
        self.remove_parameters(names)

    def hyperparameters(self, group: str = HOST_GROUP) -> dict[str, Any]:
        """Return what ``set_hyperparameters`` may change, as it is now."""
        found = self._group(group)
        if found is None:
            raise OptimizerRefused("group", group, ", ".join(self.group_names()))
        return {name: found[name] for name in settable(self.optimizer)}

    def set_hyperparameters(self, values: Mapping[str, Any], group: str = "") -> dict[str, Any]:
        """Change hyperparameters of one group, or of all (``group`` empty), from the next step on.

        ``beta1`` and ``beta2`` stand for the parts of ``betas``. All values are checked before any
        is set.

        Returns:
            What was set, by name.

        Raises:
            OptimizerRefused: naming the field, its value and what is allowed. ``lr`` is refused:
                rates are the learning-rate controller's.
        """
        accepted = self._accepted(values, group)
        for found, changes in accepted:
            found.update(changes)
        return accepted[0][1]

    def check_hyperparameters(self, values: Mapping[str, Any], group: str = "") -> None:
        """Raise what ``set_hyperparameters`` would raise; change nothing."""
        self._accepted(values, group)

    def _accepted(
        self, values: Mapping[str, Any], group: str
    ) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return each group that is meant, with what it is to hold."""
        groups = [g for g in self.param_groups if not group or g["name"] == group]
        if not groups:
            raise OptimizerRefused("group", group, ", ".join(self.group_names()))
        return [(found, check(self.optimizer, found, values)) for found in groups]

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state: tensors by ``parameter/key``, and the rest as JSON values.

        The tensors are the live ones, not copies: whoever keeps them past the fence copies them.
        """
        return export(self.optimizer, self._names)

    def load(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Take over what ``export`` returned, here or in another process.

        The host's groups must be the same by name and parameters. The other groups become the saved
        ones, made of the model's parameters of those names: so rebuild the model's seeds first. A
        state tensor that exists is copied into, one that doesn't is made.

        Raises:
            OptimizerStateMismatch: another class of optimizer, other parameters, or state of an
                unknown parameter or of a wrong shape; nothing was changed.
        """
        parameters = dict(self._model.named_parameters())
        present = {name: self.parameter_names(name) for name in self.group_names()}
        state = matched(self.name, parameters, present, tensors, meta)
        self._regroup({g["name"]: g["parameters"] for g in meta["groups"]}, parameters)
        for saved, group in zip(meta["groups"], self.param_groups, strict=True):
            group.update(saved_hyperparameters(saved))
            for parameter in group["params"]:
                saved_state = state.get(self._names[parameter], {})
                load_parameter(self.optimizer, group, parameter, saved_state)

    def _regroup(
        self, wanted: Mapping[str, list[str]], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Make the groups those of ``wanted``, in its order; what is right already stays."""
        for group in list(self.param_groups):
            members = [parameters.get(name) for name in wanted.get(group["name"], [])]
            if [id(p) for p in group["params"]] != [id(p) for p in members]:
                self._drop(set(group["params"]))
        for name in wanted.keys() - set(self.group_names()):
            self.add_parameters(name, [(member, parameters[member]) for member in wanted[name]])
        by_name = {group["name"]: group for group in self.param_groups}
        self.param_groups[:] = [by_name[name] for name in wanted]

    def _drop(self, leaving: set[nn.Parameter]) -> None:
        for group in self.param_groups:
            if "param_names" in group:
                pairs = zip(group["param_names"], group["params"], strict=True)
                group["param_names"] = [name for name, p in pairs if p not in leaving]
            # In place, as somebody may hold the list.
            group["params"][:] = [p for p in group["params"] if p not in leaving]
        self.param_groups[:] = [group for group in self.param_groups if group["params"]]
        for parameter in leaving:
            self.optimizer.state.pop(parameter, None)
            del self._names[parameter]

    def _group(self, name: str) -> dict[str, Any] | None:
        return next((group for group in self.param_groups if group["name"] == name), None)


def _make(factory: Factory, params: list[nn.Parameter]) -> Optimizer:
    try:
        optimizer: object = factory(params)
    except Exception as error:
        raise user_error("the job", "optimizer(params)", error) from error
    if not isinstance(optimizer, Optimizer):
        raise JobError(
            f"optimizer(params) returned a {type(optimizer).__name__}; it must be a torch Optimizer"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise JobError("optimizer(params) made LBFGS, which runs the model many times in one step")
    return optimizer
