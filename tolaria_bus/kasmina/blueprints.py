"""What can be grown, by name. Every blueprint is the identity when it is new.

Each is ``x + f(x)`` with the last layer of ``f`` at zero: grafting it in changes nothing until it
has learned something, and its gradient is not zero.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tolaria_bus.kasmina.errors import SeedRefused, UnknownBlueprint
from tolaria_bus.kasmina.slot import SlotKind

# Groups of a GroupNorm: as many as divide the channels, up to this.
_MAX_GROUPS = 8


@dataclass(frozen=True)
class Parameter:
    """A number that a blueprint takes; ``whole`` ones must be integers, ``odd`` ones odd too."""

    default: float
    least: float
    most: float
    whole: bool = True
    odd: bool = False

    @property
    def allowed(self) -> str:
        """Say in words what is allowed."""
        word = "an odd whole number" if self.odd else "a whole number" if self.whole else "a number"
        return f"{word} from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Blueprint:
    """How to build one kind of seed for one kind of slot."""

    kind: SlotKind
    parameters: Mapping[str, Parameter]
    make: Callable[..., nn.Module]


class ResidualConv(nn.Module):
    """Two convolutions around a ReLU: ``x + conv(relu(norm(conv(x))))``."""

    def __init__(self, channels: int, *, expansion: float, kernel_size: int) -> None:
        super().__init__()
        hidden = max(1, round(channels * expansion))
        padding = kernel_size // 2
        self.expand = nn.Conv2d(channels, hidden, kernel_size, padding=padding, bias=False)
        self.norm = nn.GroupNorm(math.gcd(hidden, _MAX_GROUPS), hidden)
        self.project = _zero(nn.Conv2d(hidden, channels, kernel_size, padding=padding))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        out: Tensor = x + self.project(F.relu(self.norm(self.expand(x))))
        return out


class Depthwise(nn.Module):
    """A convolution of each channel by itself, then a mix of the channels."""

    def __init__(self, channels: int, *, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )
        self.pointwise = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        out: Tensor = x + self.pointwise(F.relu(self.depthwise(x)))
        return out


class NormScale(nn.Module):
    """The normalised input, scaled and shifted by channel: two numbers for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(channels, _MAX_GROUPS), channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        out: Tensor = x + self.norm(x)
        return out


class ResidualMlp(nn.Module):
    """Two layers around a GELU: ``x + linear(gelu(linear(x)))``."""

    def __init__(self, features: int, *, expansion: float) -> None:
        super().__init__()
        hidden = max(1, round(features * expansion))
        self.expand = nn.Linear(features, hidden)
        self.project = _zero(nn.Linear(hidden, features))

    def forward(self, x: Tensor) -> Tensor:
        """(…, F) → the same shape."""
        out: Tensor = x + self.project(F.gelu(self.expand(x)))
        return out


class LowRank(nn.Module):
    """A linear map of low rank beside the identity."""

    def __init__(self, features: int, *, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(features, rank, bias=False)
        self.up = _zero(nn.Linear(rank, features, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(…, F) → the same shape."""
        out: Tensor = x + self.up(self.down(x))
        return out


_EXPANSION = Parameter(default=1.0, least=0.05, most=8.0, whole=False)
_KERNEL = Parameter(default=3, least=1, most=11, odd=True)

BLUEPRINTS: Mapping[str, Blueprint] = {
    "residual_conv": Blueprint(
        "conv2d", {"expansion": _EXPANSION, "kernel_size": _KERNEL}, ResidualConv
    ),
    "depthwise": Blueprint("conv2d", {"kernel_size": _KERNEL}, Depthwise),
    "norm_scale": Blueprint("conv2d", {}, NormScale),
    "residual_mlp": Blueprint("linear", {"expansion": _EXPANSION}, ResidualMlp),
    "low_rank": Blueprint("linear", {"rank": Parameter(default=8, least=1, most=4096)}, LowRank),
}


def find(blueprint_id: str) -> Blueprint:
    """Return a blueprint by its name.

    Raises:
        UnknownBlueprint: naming those there are.
    """
    try:
        return BLUEPRINTS[blueprint_id]
    except KeyError:
        known = ", ".join(f"{name} ({found.kind})" for name, found in BLUEPRINTS.items())
        raise UnknownBlueprint(f"blueprint_id is {blueprint_id!r}; allowed: {known}") from None


def settle(blueprint_id: str, parameters: Mapping[str, Any]) -> dict[str, float | int]:
    """Return a blueprint's parameters, checked and with the defaults filled in.

    Raises:
        UnknownBlueprint: there is no such blueprint.
        SeedRefused: ``bad_parameter``, naming it, its value and what is allowed.
    """
    known = find(blueprint_id).parameters
    for name in parameters:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise SeedRefused(
                "bad_parameter",
                f"{name!r} is no parameter of the blueprint {blueprint_id}; allowed: {allowed}",
            )
    return {
        name: _checked(name, parameters.get(name, spec.default), spec)
        for name, spec in known.items()
    }


def build(
    blueprint_id: str, kind: SlotKind, features: int, parameters: Mapping[str, Any]
) -> nn.Module:
    """Build a seed for a slot. Its weights are drawn from torch's default generator.

    Raises:
        UnknownBlueprint: there is none of that name for that kind of slot.
        SeedRefused: ``bad_parameter``.
    """
    blueprint = find(blueprint_id)
    if blueprint.kind != kind:
        fitting = ", ".join(name for name, found in BLUEPRINTS.items() if found.kind == kind)
        raise UnknownBlueprint(
            f"the blueprint {blueprint_id} is for {blueprint.kind} slots, this one is {kind}; "
            f"allowed: {fitting}"
        )
    return blueprint.make(features, **settle(blueprint_id, parameters))


def _checked(name: str, value: object, spec: Parameter) -> float | int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and spec.least <= value <= spec.most:  # type: ignore[arg-type, operator]
        # A protobuf Struct has no integers: 3.0 is a whole number.
        if not spec.whole:
            return float(value)  # type: ignore[arg-type]
        if value == int(value) and (not spec.odd or int(value) % 2):  # type: ignore[call-overload]
            return int(value)  # type: ignore[call-overload, no-any-return]
    raise SeedRefused("bad_parameter", f"{name} is {value!r}; allowed: {spec.allowed}")


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
