"""A model's fingerprint: equal if and only if two models' weights are equal bit for bit."""

from __future__ import annotations

import hashlib
import struct

from torch import Tensor, nn

from tolaria_bus.tolaria.recovery.tensor_bytes import dtype_name, tensor_bytes


def weights_sha256(model: nn.Module) -> str:
    """SHA-256, in hex, over all parameters and buffers of a model.

    Every name counts: tied weights once under each of their names, buffers whether they are
    persistent or not. Devices, strides and ``requires_grad`` don't count. Hashed are, for each
    tensor in order of its qualified name (by code point), all integers 8 bytes little-endian:

    - length of the name in UTF-8, the name
    - ``p`` for a parameter, ``b`` for a buffer
    - length of the dtype, the dtype (``float32``)
    - number of dimensions, each dimension
    - number of bytes, the bytes: elements in row-major order, little-endian

    Raises:
        ValueError: A tensor is sparse, quantised, or on the meta device.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    tensors: list[tuple[str, bytes, Tensor]] = [(name, b"p", tensor) for name, tensor in parameters]
    tensors += [(name, b"b", tensor) for name, tensor in buffers]
    digest = hashlib.sha256()
    for name, kind, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(_text(name) + kind + _text(dtype_name(tensor.dtype)))
        data = tensor_bytes(name, tensor)
        digest.update(struct.pack(f"<{2 + tensor.dim()}q", tensor.dim(), *tensor.shape, len(data)))
        digest.update(data)
    return digest.hexdigest()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<q", len(data)) + data
