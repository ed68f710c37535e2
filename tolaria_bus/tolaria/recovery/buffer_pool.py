"""The buffers that go back and forth between the fence and whoever writes them to disk."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tolaria_bus.tolaria.recovery.buffers import TensorBuffers

MOST = 8
"""Checkpoints that may wait to be written, of a small state."""

SPARE_BYTES = 64 << 20
"""More than one block only as long as all together take no more than this."""


class BufferPool:
    """Lends buffers. Where all are lent, the next one to take some waits for some to come back.

    So a run that saves faster than its disk writes is held up at the fence, rather than taking more
    and more memory or leaving checkpoints out: which checkpoints there are must not depend on time.

    Args:
        make: Makes empty buffers.
    """

    def __init__(self, make: Callable[[], TensorBuffers]) -> None:
        self._make = make
        self._changed = threading.Condition()  # Its lock is one that a thread may take twice.
        self._free: list[TensorBuffers] = []
        self._sizes: dict[int, int] = {}  # Of all there are, by id.

    def take(self, size: int) -> TensorBuffers:
        """Buffers for ``size`` bytes, the largest that are free; they may have to grow."""
        with self._changed:
            while not self._free and not self._may_make(size):
                self._changed.wait()
            if not self._free:
                self._free.append(self._make())
            buffers = self._free.pop()
            self._sizes[id(buffers)] = max(size, buffers.capacity)
            return buffers

    def give_back(self, buffers: TensorBuffers) -> None:
        """Nobody needs what is in them any more. From any thread."""
        with self._changed:
            self._sizes[id(buffers)] = buffers.capacity
            self._free.append(buffers)
            self._free.sort(key=lambda item: item.capacity)
            self._changed.notify_all()

    def prepare(self, size: int) -> None:
        """Make buffers of ``size`` bytes ready, in a thread of its own; a fence waits for it.

        Nothing happens where all are lent.
        """
        with self._changed:
            if not self._free and not self._may_make(size):
                return
            buffers = self.take(size)

        def work() -> None:
            try:
                buffers.reserve(size)
            except (MemoryError, RuntimeError):
                pass  # The fence asks for what it needs, and says so if there isn't as much.
            finally:
                self.give_back(buffers)

        threading.Thread(target=work, name="checkpoint-memory", daemon=True).start()

    def _may_make(self, size: int) -> bool:
        count = len(self._sizes)
        return not count or (count < MOST and sum(self._sizes.values()) + size <= SPARE_BYTES)
