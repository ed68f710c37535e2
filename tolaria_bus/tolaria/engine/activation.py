"""Activation checkpointing: modules that keep no activations and run again in the backward pass.

It trades time for memory (Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016,
https://arxiv.org/abs/1604.06174). Random draws are repeated, so that the gradients are the same to
the bit; only modules whose second run would change a buffer (BatchNorm's statistics) are refused.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module, pattern: str) -> int:
    """Let the modules that ``pattern`` names keep no activations.

    Args:
        model: Changed in place; names of parameters stay.
        pattern: A glob of qualified names: ``blocks.*``; a module inside a chosen one is left out.

    Returns:
        How many modules were chosen.

    Raises:
        ValueError: the pattern names none, or one that keeps running statistics.
    """
    chosen: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if name and not inside and fnmatchcase(name, pattern):
            chosen[name] = module
    if not chosen:
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"names no module of the model; at its top are {names or 'none'}")
    for name, module in chosen.items():
        for inner in module.modules():
            if isinstance(inner, _NormBase) and inner.track_running_stats:
                raise ValueError(
                    f"names {name}, in which a {type(inner).__name__} keeps running statistics; "
                    "run twice, they would differ"
                )
    for module in chosen.values():
        _wrap(module)
    return len(chosen)


def _wrap(module: nn.Module) -> None:
    forward = module.forward

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)

    module.forward = checkpointed
