"""Memory for one copy of a state, allocated and touched once, and filled at a fence.

Copying into memory that is there costs what memcpy costs. Fresh memory costs many times that, as
the system has to give each page at the first touch: so it is made once, away from the fence, and
again only where a state outgrows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tolaria_bus.tolaria.recovery.tensor_bytes import check_plain

ALIGNMENT = 64
"""Bytes: a cache line, and no dtype wants more."""

Allocate = Callable[[int], Tensor]
"""Gives so many bytes, as a flat ``uint8`` tensor of host memory that has been touched."""


def touched_memory(size: int) -> Tensor:
    """``size`` bytes of ordinary memory, each page of it touched."""
    return torch.zeros(size, dtype=torch.uint8)


def pinned_memory(size: int) -> Tensor:
    """``size`` bytes of page-locked memory: an accelerator copies into it without stopping."""
    return torch.zeros(size, dtype=torch.uint8, pin_memory=True)


class TensorBuffers:
    """A private copy of a set of named tensors, in one block of memory.

    Args:
        allocate: Where the block comes from.

    Attributes:
        tensors: What was copied last, by name: contiguous, on the CPU. Views of the block, which
            the next :meth:`fill` writes over.
        memory: The block; empty at first.
    """

    def __init__(self, allocate: Allocate = touched_memory) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.memory = torch.empty(0, dtype=torch.uint8)
        self._allocate = allocate

    @property
    def capacity(self) -> int:
        """Bytes in the block."""
        return self.memory.numel()

    def reserve(self, size: int) -> None:
        """Make the block at least ``size`` bytes, so that no :meth:`fill` has to.

        Takes a quarter of a second for 100 MB. What was copied before is gone if the block is new.

        Raises:
            MemoryError, RuntimeError: There is not so much memory.
        """
        if size > self.capacity:
            # The old one goes first: both at once may be more than there is.
            self.tensors = {}
            self.memory = torch.empty(0, dtype=torch.uint8)
            self.memory = self._allocate(size)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors of any device and stride; returns when all of them are here.

        Args:
            tensors: Other names, shapes or dtypes than the last time are allowed; more bytes than
                the block has make a new one (see :meth:`reserve`).

        Raises:
            ValueError: A tensor has no plain bytes: sparse, quantised, or on the meta device.
            MemoryError, RuntimeError: There is not so much memory.
        """
        if not self._fits(tensors):
            self._carve(tensors)
        sources = [tensor.detach() for tensor in tensors.values()]
        devices = {tensor.device for tensor in sources if tensor.device.type != "cpu"}
        with torch.no_grad():
            if sources:
                torch._foreach_copy_(
                    list(self.tensors.values()), sources, non_blocking=bool(devices)
                )
            for device in devices:
                torch.accelerator.synchronize(device)

    def _fits(self, tensors: Mapping[str, Tensor]) -> bool:
        return len(tensors) == len(self.tensors) and all(
            name == mine and tensor.shape == buffer.shape and tensor.dtype == buffer.dtype
            for (name, tensor), (mine, buffer) in zip(
                tensors.items(), self.tensors.items(), strict=True
            )
        )

    def _carve(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            check_plain(name, tensor)
        self.reserve(needed_bytes(tensors))
        carved: dict[str, Tensor] = {}
        offset = 0
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            flat = self.memory[offset : offset + size]
            carved[name] = flat.view(tensor.dtype).reshape(tensor.shape)
            offset += _aligned(size)
        self.tensors = carved


def needed_bytes(tensors: Mapping[str, Tensor]) -> int:
    """The size of a block that has room for these tensors."""
    return sum(_aligned(tensor.numel() * tensor.element_size()) for tensor in tensors.values())


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT
