"""Batches on their way to a CUDA device, beside its work.

Copies have a stream of their own: a copy engine of the device makes them while its other work goes
on. Three things must hold, and each has its line here. What trains waits for the copy: an event.
The device's memory of a batch isn't given to the next copy while what trains still reads it: the
allocator is told that another stream than the one that it was got on uses it. And what is copied
from stays, unchanged, until the copy is done: ``wait``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tolaria_bus.tolaria.engine.batch import is_plain, map_tensors


class CopyStream:
    """Copies batches to a CUDA device, one at a time. Training thread only.

    Args:
        device: With its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._source: Any = None

    def wait(self) -> None:
        """Wait until what was copied from may be drawn over: a loader may use its memory again.

        Long since true where a step lies between two batches.
        """
        if self._source is not None:
            self._copied.synchronize()
            self._source = None

    def begin(self, batch: Any) -> Any:
        """Begin to copy, and return the batch on the device: to be used after :meth:`take` only.

        Plain tensors of the CPU's are copied; others stay as they are. From page-locked memory
        nothing waits; from other memory the training thread waits for this copy alone.

        Raises:
            torch.OutOfMemoryError: The device has no memory for one more batch.
        """
        with torch.cuda.stream(self._stream):
            moved = map_tensors(batch, self._copy)
        self._copied.record(self._stream)
        self._source = batch
        return moved

    def take(self, moved: Any) -> Any:
        """Let what is queued from now on see the batch that was begun last; returns it."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._copied)

        def used(tensor: Tensor) -> Tensor:
            if tensor.device == self._device and is_plain(tensor):
                tensor.record_stream(current)
            return tensor

        return map_tensors(moved, used)

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.is_cpu and is_plain(tensor):
            return tensor.to(self._device, non_blocking=tensor.is_pinned())
        return tensor
