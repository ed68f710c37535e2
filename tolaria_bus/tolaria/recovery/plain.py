"""A model's own ``state_dict`` out of a saved state, for use elsewhere.

A saved state has each tensor once and every buffer; ``state_dict`` has tied weights under each of
their names, and no buffer that the model calls not persistent. What makes the difference is noted
with the state, so that neither the job nor its code is needed later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

_MODEL = "model."


def plain_names(model: nn.Module) -> dict[str, Any]:
    """In what the names of ``model.state_dict()`` differ from those of a saved state.

    Returns:
        JSON values: ``tied``, other names of tensors that are there under a first one; and
        ``transient``, names of buffers that aren't in it.
    """
    tied: dict[str, str] = {}
    for named in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        tied.update(_others(named))
    transient = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in sorted(module._non_persistent_buffers_set)
    ]
    return {"tied": tied, "transient": transient}


def plain_state_dict(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """The ``state_dict`` of the model in a saved state; tied weights are the same tensor.

    Args:
        tensors: As of a checkpoint.
        meta: Likewise. One that an earlier version wrote doesn't note the differences: then every
            tensor of the model is taken, once.
    """
    found = {
        name.removeprefix(_MODEL): tensor
        for name, tensor in tensors.items()
        if name.startswith(_MODEL)
    }
    noted = meta.get("state_dict", {"tied": {}, "transient": []})
    for name, first in noted["tied"].items():
        found[name] = found[first]
    for name in noted["transient"]:
        found.pop(name, None)
    return found


def _others(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    first: dict[int, str] = {}
    others = {}
    for name, tensor in named:
        if id(tensor) in first:
            others[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return others
