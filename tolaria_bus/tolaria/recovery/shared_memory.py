"""Memory that another process can read by a file descriptor, without a name anywhere.

A ``memfd`` isn't bound by the size of ``/dev/shm``, which containers keep small, and is gone with
the last process that has it. Linux only.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

import torch
from torch import Tensor

AVAILABLE = hasattr(os, "memfd_create")
"""Is there such memory on this system?"""


class Place(NamedTuple):
    """Where a tensor's bytes are: in which file descriptor, from which offset on."""

    fd: int
    offset: int


class SharedMemory:
    """One block of memory that can be shared; a larger one takes its place when asked for.

    ``allocate`` is what :class:`~.buffers.TensorBuffers` wants. Nothing has to be closed: the block
    goes with the last tensor in it and this object.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._block = torch.empty(0, dtype=torch.uint8)

    def allocate(self, size: int) -> Tensor:
        """A block of ``size`` bytes, touched.

        Raises:
            MemoryError: There is not so much.
        """
        self._close()
        fd = os.memfd_create("tolaria-checkpoint", os.MFD_CLOEXEC)
        try:
            # Gives every page now: memory that isn't there would otherwise kill at the first touch.
            os.posix_fallocate(fd, 0, size)
            block = torch.frombuffer(mmap.mmap(fd, size), dtype=torch.uint8)
        except OSError as error:
            os.close(fd)
            raise MemoryError(f"{size} bytes of shared memory: {error.strerror}") from error
        # By numpy: torch would start threads of its own for it.
        block.numpy().fill(0)
        self._fd, self._block = fd, block
        return block

    def find(self, tensor: Tensor) -> Place | None:
        """Where a contiguous tensor lies in the block, ``None`` if it lies elsewhere."""
        offset = tensor.data_ptr() - self._block.data_ptr()
        size = tensor.numel() * tensor.element_size()
        inside = self._fd >= 0 and offset >= 0 and offset + size <= self._block.numel()
        return Place(self._fd, offset) if inside else None

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        self._block = torch.empty(0, dtype=torch.uint8)
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self._close()
