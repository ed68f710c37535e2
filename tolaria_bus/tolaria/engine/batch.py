"""Batches as nested tuples, lists and mappings of tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return ``batch`` with ``function`` applied to every tensor in it; the nesting is kept."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        mapped = {key: map_tensors(value, function) for key, value in batch.items()}
        return mapped if type(batch) is dict else type(batch)(mapped)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch


def page_locked(batch: Any) -> Any:
    """Return ``batch`` with every plain tensor of the CPU's in page-locked memory.

    The others stay: a dataset's may be on the device already.
    """
    return map_tensors(
        batch, lambda tensor: tensor.pin_memory() if tensor.is_cpu and is_plain(tensor) else tensor
    )


def is_plain(tensor: Tensor) -> bool:
    """Is it one block of memory: neither sparse nor nested?"""
    return tensor.layout is torch.strided and not tensor.is_nested


def to_device(batch: Any, device: torch.device) -> Any:
    """Return ``batch`` with every tensor on ``device``; from page-locked memory without waiting."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))
