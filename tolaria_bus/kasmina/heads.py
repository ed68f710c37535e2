"""Heads of attention, so far as a module says how it lays them out: what has to be cut with each.

A trace can't tell heads from any other features: a view does that, inside the module. So a module
of the user's own says it (``head_layout``), and goes by its attribute ``heads`` alone in its
forward, which a removal lowers. ``nn.MultiheadAttention`` derives its heads' width from its own and
can't be without one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tolaria_bus.kasmina.channels import Use, refuse_tied, refused


@dataclass(frozen=True)
class HeadLayout:
    """How an attention module lays out its heads.

    Attributes:
        width: Features of one head.
        into: The linear layers (their names in the module) whose outputs are split into heads →
            how many parts each has: its rows are (part, head, feature), as 3 for ``qkv``.
        out: The linear layer whose inputs are all heads, (head, feature).
    """

    width: int
    into: Mapping[str, int]
    out: str


@dataclass(frozen=True)
class Heads:
    """The heads of one module.

    Attributes:
        count: How many there are.
        uses: Every tensor that they are a dimension of.
        importance: Of each, float64 (count): the L1 norm of all weights that are its own.
    """

    count: int
    uses: list[Use]
    importance: Tensor


def layout_of(module: object) -> HeadLayout | None:
    """The layout that a module declares, if it does."""
    found = getattr(module, "head_layout", None)
    return found if isinstance(found, HeadLayout) and isinstance(module, nn.Module) else None


def heads_of(model: nn.Module, target: str, layout: HeadLayout, seeds: Mapping[str, str]) -> Heads:
    """Find all that belongs to the heads of a module.

    Args:
        model: It is in there.
        target: Its path.
        layout: As it declares it.
        seeds: Path of a module → the seed that grows behind it.

    Raises:
        SeedRefused: ``bad_parameter``: its layers aren't as its layout says, share a parameter, or
            have a seed behind them.
    """
    count = getattr(model.get_submodule(target), "heads", None)
    if not isinstance(count, int) or count < 1:
        raise refused(target, f"its heads are {count!r}, and should be how many there are")
    uses: list[Use] = []
    norms = torch.zeros(count, dtype=torch.float64)
    for name, parts in layout.into.items():
        path = f"{target}.{name}"
        if path in seeds:
            raise refused(target, f"the seed {seeds[path]!r} grows behind {path}")
        layer = _linear(model, target, path)
        _check(target, path, layer.weight.shape[0], parts * count * layout.width)
        uses += [
            Use(f"{path}.{own}", 0, layout.width, parts=parts)
            for own, _ in layer.named_parameters(recurse=False)
        ]
        rows = layer.weight.detach().double().abs().cpu()
        norms += rows.view(parts, count, -1).sum((0, 2))
    path = f"{target}.{layout.out}"
    layer = _linear(model, target, path)
    _check(target, path, layer.weight.shape[1], count * layout.width)
    uses.append(Use(f"{path}.weight", 1, layout.width, takes_in=True))
    columns = layer.weight.detach().double().abs().cpu()
    norms += columns.sum(0).view(count, -1).sum(1)
    refuse_tied(model, target, uses)
    return Heads(count, uses, norms)


def tell_heads(model: nn.Module, changed: Collection[str]) -> None:
    """Let each module know how many heads it has, where the weights of ``changed`` say so."""
    for name, found in model.named_modules():
        layout = layout_of(found)
        if layout is None:
            continue
        weight = ".".join(filter(None, (name, layout.out, "weight")))
        if weight in changed:
            module: Any = found
            module.heads = model.get_parameter(weight).shape[1] // layout.width


def _linear(model: nn.Module, target: str, path: str) -> nn.Linear:
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if type(layer) is not nn.Linear:
        raise refused(target, f"its layout names {path}, a {type(layer).__name__}, not a Linear")
    return layer


def _check(target: str, path: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise refused(target, f"by its layout {path} should have {wanted} features, not {found}")
