"""Tensors as plain bytes, and the names of their dtypes."""

from __future__ import annotations

import torch
from torch import Tensor


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name.

    Raises:
        ValueError: This torch has no such dtype.
    """
    dtype = getattr(torch, name, None)
    if isinstance(dtype, torch.dtype):
        return dtype
    raise ValueError(f"dtype {name!r}: torch {torch.__version__} has none of that name")


def tensor_bytes(name: str, tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order, as they are in memory (little-endian).

    A view without a copy where the tensor is contiguous and on the CPU; it must not be changed
    while the view is used.

    Args:
        name: For the error.
        tensor: Of any device and stride.

    Raises:
        ValueError: It has no plain bytes: sparse, quantised, or on the meta device.
    """
    check_plain(name, tensor)
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if plain.element_size() == 1:
        # Float4 can't be copied while only deterministic algorithms are allowed; bytes can.
        plain = plain.view(torch.uint8)
    plain = plain.contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def check_plain(name: str, tensor: Tensor) -> None:
    """See that a tensor has plain bytes.

    Raises:
        ValueError: It is sparse, quantised, or on the meta device.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "on the meta device" if tensor.is_meta else "sparse or quantised"
        raise ValueError(f"tensor {name!r} is {kind}: it has no plain bytes")
