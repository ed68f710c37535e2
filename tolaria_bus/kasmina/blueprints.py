"""What can be grown, by name: the library, and what a user's own package adds to it.

A package adds blueprints through the entry-point group ``tolaria_bus.blueprints``: the entry's name
is the blueprint's id, what it loads is a :class:`Blueprint`. The library's ids can't be taken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from tolaria_bus.kasmina import modules
from tolaria_bus.kasmina.errors import UnknownBlueprint
from tolaria_bus.kasmina.parameters import Parameter, settled
from tolaria_bus.kasmina.slot import SlotKind

ENTRY_POINTS = "tolaria_bus.blueprints"


@dataclass(frozen=True)
class Blueprint:
    """How to build one kind of seed.

    Attributes:
        kinds: The slots that it is for.
        make: ``make(features, kind, **parameters)`` returns the module: features of a slot of that
            kind in, the same shape out. It may draw from torch's default generator. A new seed
            should be the identity, so that what it does is what it has learned.
        parameters: What it takes, by name.
    """

    kinds: tuple[SlotKind, ...]
    make: Callable[..., nn.Module]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


_CONV: tuple[SlotKind, ...] = ("conv2d",)
_LINEAR: tuple[SlotKind, ...] = ("linear", "sequence")
_ANY: tuple[SlotKind, ...] = ("conv2d", "linear", "sequence")
_EXPANSION = Parameter(default=1.0, least=0.05, most=8.0, whole=False)
_KERNEL = Parameter(default=3, least=1, most=11, odd=True)

LIBRARY: Mapping[str, Blueprint] = {
    "residual_conv": Blueprint(
        _CONV, modules.ResidualConv, {"expansion": _EXPANSION, "kernel_size": _KERNEL}
    ),
    "bottleneck": Blueprint(
        _CONV,
        modules.Bottleneck,
        {
            "reduction": Parameter(default=4.0, least=1.0, most=64.0, whole=False),
            "kernel_size": _KERNEL,
        },
    ),
    "depthwise": Blueprint(_CONV, modules.Depthwise, {"kernel_size": _KERNEL}),
    "residual_mlp": Blueprint(_LINEAR, modules.ResidualMlp, {"expansion": _EXPANSION}),
    "attention": Blueprint(
        ("sequence",),
        modules.AttentionHead,
        {
            "heads": Parameter(default=1, least=1, most=64),
            "width": Parameter(default=32, least=1, most=512),
            "causal": Parameter(default=1, least=0, most=1),
        },
    ),
    "low_rank": Blueprint(
        _ANY, modules.LowRank, {"rank": Parameter(default=8, least=1, most=4096)}
    ),
    "norm_scale": Blueprint(_ANY, modules.NormScale),
    "channel_scale": Blueprint(_ANY, modules.ChannelScale),
}


def known() -> tuple[str, ...]:
    """Return every id: the library's, then those that packages add."""
    return (*LIBRARY, *(name for name in _added() if name not in LIBRARY))


def find(blueprint_id: str) -> Blueprint:
    """Return a blueprint by its id.

    Raises:
        UnknownBlueprint: naming those there are, or saying why the package's own can't be used.
    """
    if blueprint_id in LIBRARY:
        return LIBRARY[blueprint_id]
    if blueprint_id in _added():
        return _load(blueprint_id)
    raise UnknownBlueprint(f"blueprint_id is {blueprint_id!r}; allowed: {', '.join(known())}")


def fitting(kind: SlotKind) -> tuple[str, ...]:
    """Return the ids of the library's blueprints that a slot of some kind can take."""
    return tuple(name for name, found in LIBRARY.items() if kind in found.kinds)


def settle(blueprint_id: str, parameters: Mapping[str, Any]) -> dict[str, float | int]:
    """Return a blueprint's parameters, checked and with the defaults filled in.

    Raises:
        UnknownBlueprint: there is no such blueprint.
        SeedRefused: ``bad_parameter``, naming it, its value and what is allowed.
    """
    specs = find(blueprint_id).parameters
    return settled(f"the blueprint {blueprint_id}", specs, parameters)


def build(
    blueprint_id: str, kind: SlotKind, features: int, parameters: Mapping[str, Any]
) -> nn.Module:
    """Build a seed for a slot. Its weights are drawn from torch's default generator.

    Raises:
        UnknownBlueprint: there is none of that name for that kind of slot.
        SeedRefused: ``bad_parameter``.
    """
    blueprint = find(blueprint_id)
    if kind not in blueprint.kinds:
        raise UnknownBlueprint(
            f"the blueprint {blueprint_id} is for {' or '.join(blueprint.kinds)} slots, this one "
            f"is {kind}; allowed: {', '.join(fitting(kind))}"
        )
    return blueprint.make(features, kind, **settle(blueprint_id, parameters))


@cache
def _added() -> Mapping[str, Any]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


@cache
def _load(blueprint_id: str) -> Blueprint:
    entry = _added()[blueprint_id]
    try:
        loaded: object = entry.load()
    except Exception as error:
        raise UnknownBlueprint(
            f"blueprint_id is {blueprint_id!r}, whose {entry.value} can't be loaded: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(loaded, Blueprint):
        raise UnknownBlueprint(
            f"blueprint_id is {blueprint_id!r}, whose {entry.value} is a "
            f"{type(loaded).__name__}; it must be a tolaria_bus.kasmina.Blueprint"
        )
    return loaded
