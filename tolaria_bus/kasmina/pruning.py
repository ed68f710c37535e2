"""Structural pruning: channels of a layer or heads of attention go, with all that they go into.

Which: channels whose filters have the smallest L1 norm (Li et al. 2017, *Pruning Filters for
Efficient ConvNets*); heads likewise, by the weights that are their own. What a removal does to the
run is measured before anything is removed, with the weights that take the channels in at zero: to
the rest of the model that is the same as their absence. The parameters stay the same objects, so
that their optimizer and their gradients' owner don't change.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tolaria_bus.kasmina import gates
from tolaria_bus.kasmina.attention import heads_kept, keep_heads
from tolaria_bus.kasmina.channels import Use, follow
from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.gates import GateReading, Limits
from tolaria_bus.kasmina.heads import heads_of, tell_heads
from tolaria_bus.kasmina.operations import Moment
from tolaria_bus.kasmina.parameters import Parameter, settled
from tolaria_bus.kasmina.slot import SeedSlot

VALUES: Mapping[str, Parameter] = {
    # By what share the held-out loss may be higher afterwards.
    "impact": Parameter(default=0.05, least=0.0, most=1e6, whole=False)
}


@dataclass(frozen=True)
class PruningPlan:
    """A pruning that has been judged.

    Attributes:
        target: The layer, or the module with heads.
        keep: The channels or heads that stay, in their order.
        channels: How many there are.
        impact: By what share the held-out loss may be higher.
        uses: Every tensor that they are a dimension of.
        unit: ``channels`` or ``heads``.
    """

    target: str
    keep: tuple[int, ...]
    channels: int
    impact: float
    uses: tuple[Use, ...]
    unit: str = "channels"


@dataclass(frozen=True)
class Narrowed:
    """A parameter that has become smaller: along ``dim`` it has only ``keep`` of what it had."""

    name: str
    dim: int
    keep: Tensor


@dataclass(frozen=True)
class Pruned:
    """What a pruning did.

    Attributes:
        target: The layer.
        removed: How many of its channels are gone.
        parameters: How many numbers the model has less.
        narrowed: The parameters concerned, for the optimizer.
        reading: Of gate G4.
    """

    target: str
    removed: int
    parameters: int
    narrowed: tuple[Narrowed, ...]
    reading: GateReading


class Shapes:
    """The shapes that pruning has changed, and how to have them again.

    Of tensors; of a slot it is its width, and of an ``nn.MultiheadAttention`` the heads that it
    has, by their numbers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._full: dict[str, list[int]] = {}

    def plan(
        self, target: str, fraction: float, values: Mapping[str, Any], seeds: Mapping[str, str]
    ) -> PruningPlan:
        """Judge a pruning; nothing changes.

        Args:
            target: Path of a ``Conv2d`` or ``Linear``, of an ``nn.MultiheadAttention``, or of a
                module with a ``head_layout``.
            fraction: Of its channels or heads, above 0 and below 1; one at least goes, and one
                stays.
            values: See ``VALUES``.
            seeds: Path of a module → the seed that grows behind it.

        Raises:
            SeedRefused: ``bad_parameter``.
        """
        if not 0 < fraction < 1:
            raise SeedRefused(
                "bad_parameter", f"fraction is {fraction}; allowed: above 0 and below 1"
            )
        impact = settled("pruning", VALUES, values)["impact"]
        heads = heads_of(self._model, target, seeds)
        if heads is not None:
            unit, channels, uses, importance = "heads", heads.count, heads.uses, heads.importance
        else:
            uses = follow(self._model, target, seeds)
            if not any(use.takes_in for use in uses):
                raise SeedRefused("bad_parameter", f"target is {target!r}: nothing takes it in")
            weight = self._model.get_parameter(f"{target}.weight")
            unit, channels = "channels", weight.shape[0]
            importance = weight.detach().double().flatten(1).abs().sum(1).cpu()
        count = min(max(1, int(channels * fraction)), channels - 1)
        if count < 1:
            raise SeedRefused(
                "bad_parameter", f"target is {target!r}, which has one {unit[:-1]} only"
            )
        # Stable, on the host: equal channels go in their order on every device.
        order = torch.argsort(importance, stable=True)
        keep = tuple(sorted(order[count:].tolist()))
        return PruningPlan(target, keep, channels, float(impact), tuple(uses), unit)

    def prune(self, plan: PruningPlan, moment: Moment) -> Pruned:
        """Measure gate G4 with the channels silenced, then remove them.

        Raises:
            SeedRefused: ``gate_failed``; nothing has changed.
        """
        if moment.held_out is None:
            raise SeedRefused("gate_failed", "pruning measures on held-out data; there are none")
        before = moment.held_out()
        with self._silenced(plan):
            after = moment.held_out()
        limits = Limits(impact=plan.impact)
        reading = gates.system_impact(
            after, before, limits, what=f"the {plan.unit}' removal"
        ).require()
        size = sum(parameter.numel() for parameter in self._model.parameters())
        parameters = dict(self._model.named_parameters())
        narrowed = []
        for use in plan.uses:
            self._full.setdefault(use.name, self._shape(use.name))
            if use.slot:
                self._set_shape(use.name, [len(plan.keep)])
                continue
            if use.heads:
                had = self._shape(use.name)
                self._set_shape(use.name, [had[head] for head in plan.keep])
                continue
            tensor = self._tensor(use.name)
            keep = _spread(plan.keep, plan.channels, use).to(tensor.device)
            _replace(tensor, tensor.detach().index_select(use.dim, keep))
            if use.name in parameters:
                narrowed.append(Narrowed(use.name, use.dim, keep))
        self._tell_modules(use.name for use in plan.uses)
        left = sum(parameter.numel() for parameter in self._model.parameters())
        removed = plan.channels - len(plan.keep)
        return Pruned(plan.target, removed, size - left, tuple(narrowed), reading)

    def written(self) -> dict[str, list[int]]:
        """Return the present shape of everything whose shape was changed."""
        return {name: self._shape(name) for name in self._full}

    def rebuild(self, wanted: Mapping[str, list[int]]) -> set[str]:
        """Give everything the shape of ``wanted``, or its first one; new values are zeros.

        Returns:
            The slots that have another width now.
        """
        changed = set()
        for name in {**self._full, **wanted}:
            full = self._full.setdefault(name, self._shape(name))
            shape = wanted.get(name, full)
            if self._shape(name) != list(shape):
                self._set_shape(name, shape)
                changed.add(name)
        self._full = {name: full for name, full in self._full.items() if name in wanted}
        self._tell_modules(changed)
        return {name for name in changed if isinstance(self._named(name), SeedSlot)}

    @contextmanager
    def _silenced(self, plan: PruningPlan) -> Iterator[None]:
        """Let nobody hear the channels that are to go."""
        gone = sorted(set(range(plan.channels)) - set(plan.keep))
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            for use in plan.uses:
                if use.takes_in:
                    weight = self._tensor(use.name).detach()
                    kept.append((weight, weight.clone()))
                    places = _spread(gone, plan.channels, use)
                    weight.index_fill_(use.dim, places.to(weight.device), 0.0)
            yield
        finally:
            for weight, before in kept:
                weight.copy_(before)

    def _named(self, name: str) -> Any:
        """A tensor, a ``SeedSlot`` or an ``nn.MultiheadAttention``."""
        path, _, own = name.rpartition(".")
        return getattr(self._model.get_submodule(path), own)

    def _tensor(self, name: str) -> Tensor:
        tensor = self._named(name)
        assert isinstance(tensor, Tensor)
        return tensor

    def _shape(self, name: str) -> list[int]:
        match self._named(name):
            case SeedSlot() as slot:
                return [slot.features]
            case nn.MultiheadAttention() as attention:
                return heads_kept(attention)
            case tensor:
                return list(tensor.shape)

    def _set_shape(self, name: str, shape: list[int]) -> None:
        match self._named(name):
            case SeedSlot() as slot:
                (slot.features,) = shape
            case nn.MultiheadAttention() as attention:
                keep_heads(attention, shape)
            case tensor:
                _replace(tensor, tensor.new_zeros(shape))

    def _tell_modules(self, names: Iterable[str]) -> None:
        """Let modules know their width by their weights."""
        changed = set(names)
        for path in {name.rpartition(".")[0] for name in changed}:
            module = self._model.get_submodule(path)
            match module:
                case nn.Conv2d():
                    module.out_channels, module.in_channels = module.weight.shape[:2]
                case nn.Linear():
                    module.out_features, module.in_features = module.weight.shape
                case nn.BatchNorm1d() | nn.BatchNorm2d():
                    tensor = module.weight if module.affine else module.running_mean
                    if tensor is not None:
                        module.num_features = len(tensor)
        tell_heads(self._model, changed)


def _spread(channels: Any, of: int, use: Use) -> Tensor:
    """The places of some channels along a dimension: ``[1, 2]``, each of 3 → 3, 4, 5, 6, 7, 8."""
    starts = torch.tensor([*channels], dtype=torch.int64) * use.repeat
    once = (starts[:, None] + torch.arange(use.repeat)).flatten()
    parts = torch.arange(use.parts) * (of * use.repeat)
    return (parts[:, None] + once).flatten()


def _replace(tensor: Tensor, values: Tensor) -> None:
    tensor.grad = None
    tensor.data = values
