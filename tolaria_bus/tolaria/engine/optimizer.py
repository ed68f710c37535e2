"""The optimizer and everything that changes it while the run is on.

Parameters join and leave in place: the optimizer object stays, and the state (Adam's moments and
step counts) of every parameter that stays is the very same tensors as before. Only another class
makes a new object, which takes over what of the state means the same there; it takes the old one's
place once it is whole. Outside, state is keyed by the parameter's qualified name, so that it
survives a process in which the parameters are other objects, and a change of structure.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from tolaria_bus.tolaria.engine import optimizer_groups
from tolaria_bus.tolaria.engine.figures import Figure
from tolaria_bus.tolaria.engine.hyperparameters import OptimizerRefused, check, settable
from tolaria_bus.tolaria.engine.job_errors import JobError
from tolaria_bus.tolaria.engine.optimizer_carry import Carried
from tolaria_bus.tolaria.engine.optimizer_classes import (
    DEFAULT_LEARNING_RATE,
    Factory,
    default_optimizer,
    find,
    made_by,
    make,
)
from tolaria_bus.tolaria.engine.optimizer_rebuild import (
    Rebuild,
    RebuildFailed,
    plan_rebuild,
    rebuilt,
)
from tolaria_bus.tolaria.engine.optimizer_state import (
    OptimizerStateMismatch,
    export,
    load_parameter,
    matched,
    saved_hyperparameters,
)

HOST_GROUP = "host"


def seed_group(seed_id: str) -> str:
    """The name of a seed's group."""
    return f"seed:{seed_id}"


__all__ = [
    "DEFAULT_LEARNING_RATE",
    "HOST_GROUP",
    "OptimizerManager",
    "OptimizerRefused",
    "OptimizerStateMismatch",
    "Rebuild",
    "RebuildFailed",
    "default_optimizer",
    "seed_group",
]


class OptimizerManager:
    """Owns the optimizer of one model.

    Its groups are addressed by name: ``host`` (the first; further ones that the job's factory made
    are ``host.1``, ``host.2``, …) and, by the trainer's convention, :func:`seed_group`'s.

    Args:
        factory: The job's ``optimizer(params)``, called with every parameter that needs a gradient;
            None: ``default_optimizer``.
        model: Whose parameters; already on its device.

    Attributes:
        optimizer: The torch optimizer in use now; ask for it at each step.
        version: Rises with each change of the parameters that are optimized, of their shapes too,
            or of the class.

    Raises:
        JobError: the factory failed, or made something that can't be used here.
    """

    def __init__(self, factory: Factory | None, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise JobError("the model has no parameter that needs a gradient")
        self._model = model
        self.version = 0
        self._rebuilds = self._failures = self._skips = 0
        self._seconds = 0.0
        self.optimizer = made_by(factory or default_optimizer, [p for _, p in named])
        self._job_class = self.name
        # What a run may come back to, though torch doesn't have it.
        self._own = {self.name: type(self.optimizer)}
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
        return optimizer_groups.group_names(self.optimizer)

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
        with self._counted():
            optimizer_groups.add(self.optimizer, group, named, self._names)

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
        with self._counted():
            gone = {p for p, name in self._names.items() if name in leaving}
            optimizer_groups.drop(self.optimizer, gone, self._names)

    def remove_group(self, group: str) -> None:
        """Let a group leave, with its parameters and their state.

        Raises:
            ValueError: there is no such group, or no parameter would be left; nothing removed.
        """
        names = self.parameter_names(group)
        if not names:
            raise ValueError(f"there is no group {group!r}; there are {self.group_names()}")
        self.remove_parameters(names)

    def narrow(self, name: str, dim: int, keep: Tensor) -> None:
        """Follow a parameter that has become smaller: its state keeps what belongs to what stayed.

        Args:
            name: Qualified; the parameter has its new shape already.
            dim: Along which it was cut.
            keep: Indices of what stayed.
        """
        self.version += 1
        for parameter, known in self._names.items():
            state = self.optimizer.state.get(parameter, {}) if known == name else {}
            for key, value in state.items():
                # Where a dimension has been summed up (Adafactor), there is nothing to leave out.
                whole = isinstance(value, Tensor) and value.dim() == parameter.dim()
                if whole and value.shape[dim] > 1:
                    state[key] = value.index_select(dim, keep.to(value.device))

    def hyperparameters(self, group: str = HOST_GROUP) -> dict[str, Any]:
        """Return what ``set_hyperparameters`` may change, as it is now."""
        found = optimizer_groups.find_group(self.optimizer, group)
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

    def plan_rebuild(self, name: str, values: Mapping[str, Any]) -> Rebuild:
        """Judge a change of the optimizer's class, to be made by ``rebuild``; nothing changes yet.

        Args:
            name: A class of ``torch.optim`` or the job's own, in whatever case.
            values: Hyperparameters, for every group; the class's defaults hold for the others.

        Raises:
            OptimizerRefused: naming the field, its value and what is allowed.
        """
        return plan_rebuild(name, values, self._own)

    def rebuild(self, plan: Rebuild) -> Carried:
        """Go on with another class: the same groups at the same rates, what it keeps of the state.

        Returns:
            Which keys of the state were carried over, and which were left behind.

        Raises:
            RebuildFailed: it could not be made; the old optimizer is in use, as it was.
        """
        with self._counted():
            self.optimizer, carried = rebuilt(self.optimizer, plan)
        return carried

    def skip(self) -> None:
        """Count a rebuild that was asked for and not tried."""
        self._skips += 1

    def figures(self) -> list[Figure]:
        """Return ``tolaria.optimizer.*``: rebuilds of this process and how long the last took."""
        return [
            Figure("tolaria.optimizer.rebuilds", self._rebuilds),
            Figure("tolaria.optimizer.failures", self._failures),
            Figure("tolaria.optimizer.skips", self._skips),
            Figure("tolaria.optimizer.rebuild_ms", self._seconds * 1e3, "ms"),
        ]

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
        tensors, meta = export(self.optimizer, self._names)
        return tensors, {**meta, "job_class": self._job_class}

    def load(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Take over what ``export`` returned, here or in another process.

        The optimizer becomes one of the saved class, if the job's own is the same as then. The
        host's groups must be the same by name and parameters. The other groups become the saved
        ones, made of the model's parameters of those names: so rebuild the model's seeds first. A
        state tensor that exists is copied into, one that doesn't is made.

        Raises:
            OptimizerStateMismatch: another class of the job's own, or one that isn't known, other
                parameters, or state of an unknown parameter or of a wrong shape; nothing changed.
        """
        # Before 0.2 a run had the job's own class, always.
        before = meta.get("job_class", meta["class"])
        if before != self._job_class:
            raise OptimizerStateMismatch(
                f"the state is of {before}, the job's optimizer is {self._job_class}"
            )
        parameters = dict(self._model.named_parameters())
        present = {name: self.parameter_names(name) for name in self.group_names()}
        state = matched(parameters, present, tensors, meta)
        if meta["class"] != self.name:
            self.optimizer = self._saved_class(meta)
        self.version += 1
        wanted = {g["name"]: g["parameters"] for g in meta["groups"]}
        optimizer_groups.regroup(self.optimizer, wanted, parameters, self._names)
        for saved, group in zip(meta["groups"], self.param_groups, strict=True):
            group.update(saved_hyperparameters(saved))
            for parameter in group["params"]:
                saved_state = state.get(self._names[parameter], {})
                load_parameter(self.optimizer, group, parameter, saved_state)

    def _saved_class(self, meta: Mapping[str, Any]) -> Optimizer:
        """Make an optimizer of a saved state's class; its hyperparameters come with the state."""
        try:
            return make(
                find(meta["class"], self._own), optimizer_groups.as_arguments(self.optimizer), {}
            )
        except Exception as error:
            raise OptimizerStateMismatch(
                f"the state is of {meta['class']}, which can't be made: {error}"
            ) from error

    @contextmanager
    def _counted(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except Exception:
            self._failures += 1
            raise
        self._rebuilds += 1
        self.version += 1
        self._seconds = time.perf_counter() - started
