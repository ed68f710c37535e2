"""Heads of attention: what has to be cut with each.

A trace can't tell heads from any other features: a view does that, inside the module. Of
``nn.MultiheadAttention`` it is known. A module of the user's own says how it lays them out
(``head_layout``), and goes by its attribute ``heads`` alone in its forward, which a removal lowers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from tolaria_bus.kasmina.attention import ATTENTIONS
from tolaria_bus.kasmina.channels import Use, refuse_tied, refused
from tolaria_bus.kasmina.plain import oddity

# Of nn.MultiheadAttention: along which dimension of it heads are, and how many parts it has.
_TORCHS = {
    "in_proj_weight": (0, 3),
    "q_proj_weight": (0, 1),
    "k_proj_weight": (0, 1),
    "v_proj_weight": (0, 1),
    "in_proj_bias": (0, 3),
    "bias_k": (2, 1),
    "bias_v": (2, 1),
}


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


def heads_of(model: nn.Module, target: str, seeds: Mapping[str, str]) -> Heads | None:
    """Find all that belongs to the heads of a module.

    Args:
        model: It is in there.
        target: Its path.
        seeds: Path of a module → the seed that grows behind it.

    Returns:
        None if it is none of which that is known.

    Raises:
        SeedRefused: ``bad_parameter``: its layers aren't as its layout says, share a parameter, or
            have a seed behind them.
    """
    module = dict(model.named_modules()).get(target) if target else None
    layout = layout_of(module)
    if layout is not None:
        found = _laid_out(model, target, layout, seeds)
    elif isinstance(module, nn.MultiheadAttention) and type(module) in ATTENTIONS:
        found = _of_torch(target, module)
    else:
        return None
    refuse_tied(model, target, found.uses)
    return found


def _laid_out(model: nn.Module, target: str, layout: HeadLayout, seeds: Mapping[str, str]) -> Heads:
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
        norms += _norms_of_rows(layer.weight, parts, count)
    path = f"{target}.{layout.out}"
    layer = _linear(model, target, path)
    _check(target, path, layer.weight.shape[1], count * layout.width)
    uses.append(Use(f"{path}.weight", 1, layout.width, takes_in=True))
    norms += _norms_of_columns(layer.weight, count)
    return Heads(count, uses, norms)


def _of_torch(target: str, module: nn.MultiheadAttention) -> Heads:
    count, width = module.num_heads, module.head_dim
    projection = module.out_proj
    if type(projection) not in (NonDynamicallyQuantizableLinear, nn.Linear):
        raise refused(target, f"its out_proj is a {type(projection).__name__}, not torch's own")
    # Else they are made of others: parametrized, masked, normed by weight.
    plain = {
        *(name for name, _ in module.named_parameters(recurse=False)),
        *(f"out_proj.{name}" for name, _ in projection.named_parameters(recurse=False)),
    }
    uses = [Use(target, 0, heads=True), Use(f"{target}.out_proj.weight", 1, width, takes_in=True)]
    norms = _norms_of_columns(projection.weight, count)
    made = {"out_proj.weight"}
    for name, (dim, parts) in _TORCHS.items():
        tensor = getattr(module, name)
        if tensor is None:
            continue
        made.add(name)
        uses.append(Use(f"{target}.{name}", dim, width, parts=parts))
        if name.endswith("_weight"):
            norms += _norms_of_rows(tensor, parts, count)
    if made - plain:
        raise refused(target, f"its {min(made - plain)} is made of other parameters")
    return Heads(count, uses, norms)


def _norms_of_rows(weight: Tensor, parts: int, count: int) -> Tensor:
    return weight.detach().double().abs().cpu().view(parts, count, -1).sum((0, 2))


def _norms_of_columns(weight: Tensor, count: int) -> Tensor:
    return weight.detach().double().abs().cpu().sum(0).view(count, -1).sum(1)


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
    if what := oddity(layer):
        raise refused(target, f"its {path} {what}")
    return layer


def _check(target: str, path: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise refused(target, f"by its layout {path} should have {wanted} features, not {found}")
