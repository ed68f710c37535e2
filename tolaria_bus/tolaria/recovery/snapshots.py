"""States in memory, to go back to within milliseconds: the fast tier of a rollback.

A snapshot is one copy of the state into memory that was allocated and touched before
(:mod:`.buffers`), and going back to it is one copy in the other direction, in place. Which states
are kept: those used last, where being taken and being gone back to are uses.

The memory for the next snapshot is made ready by a thread of its own as soon as the one before is
taken, so that a fence waits for no allocation; one set of buffers more than there are snapshots is
what that costs. A state that has grown since (a seed germinated) is the exception: its first
snapshot allocates.

Whether a state is good isn't known when it is taken: the loss of the *next* step is the first that
is computed with its weights. So nobody may go back to a snapshot before that loss has been read
(see :mod:`.rollback`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from tolaria_bus.tolaria.recovery.buffers import (
    Allocate,
    TensorBuffers,
    pinned_memory,
    touched_memory,
)
from tolaria_bus.tolaria.recovery.state import TrainingState, capture_into, state_bytes

LEAST_SETS = 2
"""Below that a snapshot would be written over the only one there is."""


@dataclass(slots=True)
class Snapshot:
    """One state in memory.

    Attributes:
        step: Optimizer steps done.
        sequence: The last journal record whose effect it contains.
        meta: The rest of the state, as :func:`~.state.capture` gives it.
    """

    step: int
    sequence: int
    meta: Mapping[str, Any]
    _buffers: TensorBuffers
    _finite: bool | None = None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The state's tensors by name, on the CPU; valid until the snapshot is given up."""
        return self._buffers.tensors

    def finite(self) -> bool:
        """Are the weights and the optimizer's state finite? One pass over them, the first time.

        Buffers of the model aren't looked at: an attention mask has infinities by right.
        """
        if self._finite is None:
            self._finite = self._look()
        return self._finite

    def _look(self) -> bool:
        parameters = self._parameters()
        for name, tensor in self.tensors.items():
            if not tensor.numel() or not (name in parameters or name.startswith("optimizer.")):
                continue
            if tensor.is_complex():
                tensor = torch.view_as_real(tensor)
            if tensor.is_floating_point():
                # A tenth of isfinite().all(); and unlike a sum it can't overflow.
                least, most = torch.aminmax(tensor)
                if not (isfinite(least) and isfinite(most)):
                    return False
        return True

    def _parameters(self) -> frozenset[str]:
        groups = self.meta["optimizer"]["groups"]
        return frozenset(f"model.{name}" for group in groups for name in group["parameters"])


class Snapshots:
    """The snapshots of one run. Training thread only.

    Args:
        keep: So many are kept, at least 1; one more set of buffers is being made ready.
        max_bytes: Buffers take no more memory than that. Where not even two sets fit, no snapshot
            is taken, and ``refused`` says why.
        pinned: Use page-locked memory, for copies from and to an accelerator.
        allocate: Where memory comes from, in place of what ``pinned`` says.

    Attributes:
        refused: Why there are no snapshots, or empty.
    """

    def __init__(
        self,
        *,
        keep: int,
        max_bytes: int,
        pinned: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        self.refused = ""
        self._keep = keep
        self._max_bytes = max_bytes
        self._allocate = allocate or (pinned_memory if pinned else touched_memory)
        self._kept: OrderedDict[tuple[int, int], Snapshot] = OrderedDict()
        self._spare: _Ready | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    def __contains__(self, key: tuple[int, int]) -> bool:
        """Is the state there that has done so many steps and contains records up to a sequence?"""
        return key in self._kept

    @property
    def steps(self) -> tuple[int, ...]:
        """Their steps, the least recently used first."""
        return tuple(snapshot.step for snapshot in self._kept.values())

    @property
    def bytes(self) -> int:
        """The memory that they take, with that of the next one."""
        spare = 0 if self._spare is None else self._spare.capacity
        return spare + sum(snapshot._buffers.capacity for snapshot in self._kept.values())

    def take(self, state: TrainingState, sequence: int) -> bool:
        """Copy the state. The least recently used one makes room.

        Args:
            state: At a fence.
            sequence: The last journal record whose effect it contains.

        Returns:
            False if there is no memory for it; ``refused`` says so, and later calls do nothing.
        """
        if self.refused:
            return False
        key = state.step, sequence
        if key in self._kept:
            # The same step, reached again with the same records, is the same state.
            self._kept.move_to_end(key)
            return True
        try:
            ready = self._spare or _Ready(TensorBuffers(self._allocate), state_bytes(state))
            self._spare = None
            buffers = ready.wait()
            meta = capture_into(state, buffers)
        except (MemoryError, RuntimeError, ValueError) as error:
            self.give_up(f"no snapshot could be taken: {error}")
            return False
        self._kept[key] = Snapshot(state.step, sequence, meta, buffers)
        self._prepare(buffers.capacity)
        return not self.refused

    def find(self, step: int, sequence: int) -> Snapshot | None:
        """The snapshot of a state, if it is there; it counts as used."""
        key = step, sequence
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def newest(self, step: int) -> Snapshot | None:
        """The newest snapshot at a step no later than this; it doesn't count as used."""
        found = [snapshot for snapshot in self._kept.values() if snapshot.step <= step]
        return max(found, key=lambda item: (item.step, item.sequence), default=None)

    def drop(self, is_live: Callable[[int, int], bool]) -> None:
        """Drop the snapshots that a rollback undid.

        Args:
            is_live: Given a snapshot's sequence and step, whether it lies on the live path.
        """
        for key, snapshot in list(self._kept.items()):
            if not is_live(snapshot.sequence, snapshot.step):
                del self._kept[key]
                # Its memory serves the next one, if that hasn't any yet.
                self._spare = self._spare or _Ready(snapshot._buffers, 0)

    def give_up(self, why: str) -> None:
        """Free all memory and take no more snapshots."""
        self.refused = why
        self._kept.clear()
        self._spare = None

    def _prepare(self, size: int) -> None:
        sets = min(self._keep + 1, self._max_bytes // max(size, 1))
        if sets < LEAST_SETS:
            self.give_up(
                f"a snapshot takes {size / 1e6:.0f} MB, and {LEAST_SETS} of them have to fit into"
                f" {self._max_bytes / 1e6:.0f} MB"
            )
            return
        buffers = None
        while len(self._kept) >= sets:
            _, least = self._kept.popitem(last=False)
            buffers = least._buffers
        if self._spare is None:
            self._spare = _Ready(buffers or TensorBuffers(self._allocate), size)


class _Ready:
    """Buffers that are being made large enough, in a thread of their own if they aren't."""

    def __init__(self, buffers: TensorBuffers, size: int) -> None:
        self._buffers = buffers
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        if size > buffers.capacity:
            self._thread = threading.Thread(
                target=self._reserve, args=(size,), name="snapshot-memory", daemon=True
            )
            self._thread.start()

    @property
    def capacity(self) -> int:
        """Bytes that they have by now."""
        return self._buffers.capacity

    def wait(self) -> TensorBuffers:
        """The buffers, large enough. Raises what allocating them raised."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._buffers

    def _reserve(self, size: int) -> None:
        try:
            self._buffers.reserve(size)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
