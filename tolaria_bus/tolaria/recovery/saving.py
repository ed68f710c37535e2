"""Checkpoints as the trainer makes them: one copy at the fence, the writing elsewhere.

The copy goes into memory that is there already. The writing is another thread's, which has a
process of low priority do the bulk of it where that costs the training less (:mod:`.disk_helper`).

Whether a state is good isn't known when it is copied: the loss of the *next* step is the first that
is computed with its weights. So a copy is *held* until that loss has been read and is sound, and
given up if it isn't, unless somebody waits for it or the run stands still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

from torch import Tensor

from tolaria_bus.leyline import CheckpointSaved, JournalRecord
from tolaria_bus.tolaria.engine.job_errors import JobError
from tolaria_bus.tolaria.recovery.buffer_pool import BufferPool
from tolaria_bus.tolaria.recovery.buffers import (
    Allocate,
    TensorBuffers,
    pinned_memory,
    touched_memory,
)
from tolaria_bus.tolaria.recovery.checkpoints import (
    CheckpointFailed,
    CheckpointWriter,
    checkpoint_name,
)
from tolaria_bus.tolaria.recovery.disk_helper import DiskHelper
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.shared_memory import AVAILABLE, Place, SharedMemory
from tolaria_bus.tolaria.recovery.state import TrainingState, capture_into, state_bytes

WriterKind = Literal["auto", "process", "thread"]
"""Who writes: ``auto`` is a process for a model on the CPU, which needs its cores for training."""


class Saving:
    """Saves the state of one run. Training thread only; a writer thread does the disk's part.

    Args:
        state: What to save.
        folder: Where.
        job: The job's name, kept with each checkpoint.
        on_saved: Told the name of a checkpoint that is durable.
        on_failed: Told the name of one that could not be written, and why.
        on_helper_lost: Told why this process had to write one itself.
        writer: Who does the bulk of the writing.
        waiting: Entered while the training thread waits for the disk.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder,
        *,
        job: str,
        on_saved: Callable[[str], None],
        on_failed: Callable[[str, str], None],
        on_helper_lost: Callable[[str], None] = lambda why: None,
        writer: WriterKind = "auto",
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._state = state
        self._folder = folder
        self._job = job
        self._on_saved = on_saved
        self._on_failed = on_failed
        self._on_helper_lost = on_helper_lost
        self._losses: SimpleQueue[str] = SimpleQueue()
        self._memories: list[SharedMemory] = []
        on_cpu = all(item.device.type == "cpu" for item in state.model.parameters())
        self._helper: DiskHelper | None = None
        self._allocate = touched_memory if on_cpu else pinned_memory
        if AVAILABLE and (writer == "process" or (writer == "auto" and on_cpu)):
            self._helper = DiskHelper(self._find, self._note_loss)
            folder.checkpoints.disk = self._helper
        self._pool = BufferPool(self._make_buffers)
        self._waiting = waiting
        self._writer = CheckpointWriter(folder.checkpoints)
        self._pending: list[tuple[str, Future[str]]] = []
        self._held: _Copy | None = None
        self._last = ""
        self._is_prepared = False
        # Adam's moments are there after the first step: only then is it known how much there is.
        self._hook = state.optimizer.optimizer.register_step_post_hook(self._after_first_step)

    def now(self, sequence: int, *, label: str = "", pin: bool = False) -> str:
        """Save, wait until it is durable and verified, return its name.

        Args:
            sequence: The last journal record that the state contains.
            label: For people.
            pin: Retention keeps it.

        Raises:
            CheckpointFailed: It could not be written; the ones before are intact.
            JobError: As for :meth:`later`.
        """
        self.later(sequence, label=label, pin=pin)
        self.release()
        self.wait()
        if not self._folder.checkpoints.has(self._last):
            raise CheckpointFailed(f"checkpoint {self._last} could not be written")
        return self._last

    def later(self, sequence: int, *, label: str = "", pin: bool = False) -> None:
        """Copy the state now, write it behind the training; a failure is an alert.

        It is written once the next step has shown that it is good: see :meth:`judge`.

        Waits where the ones before aren't written yet and there is no memory for one more.

        Raises:
            JobError: The loader of the training data failed to tell its state.
        """
        self.judge()
        self._settle(block=False)
        state = self._state
        name = checkpoint_name(state.step, state.timeline, sequence)
        self._last = name
        if self._held is not None and self._held.name == name:
            self._held.pin = self._held.pin or pin
            return
        # Of this very step, before something was done at its fence.
        self._give_up_held()
        if self._folder.checkpoints.has(name) or any(name == other for other, _ in self._pending):
            # Nothing has changed since.
            if pin:
                self.wait()
                self._folder.checkpoints.pin(name)
            return
        if self._is_prepared:
            self._hook.remove()
        with self._waiting():
            buffers = self._pool.take(state_bytes(state))
        try:
            meta = capture_into(state, buffers)
        except (ValueError, MemoryError, RuntimeError) as error:
            self._pool.give_back(buffers)
            if isinstance(error, JobError):
                raise
            self._on_failed(name, f"the state can't be copied: {error}")
            return
        meta.update(sequence=sequence, job=self._job, label=label, epoch=state.epoch)
        self._held = _Copy(name, state.step, state.timeline, buffers, meta, pin)

    @property
    def holding(self) -> bool:
        """A copy waits for the next loss."""
        return self._held is not None

    def judge(self) -> None:
        """Write the copy that is held if a loss has shown it to be good, give it up if it was cut.

        To be called when a loss has been taken into the state's statistics.
        """
        held, state = self._held, self._state
        if held is None:
            return
        if held.timeline != state.timeline:
            self._give_up_held()
        elif state.last_loss_step > held.step:
            self.release()

    def release(self) -> None:
        """Write the copy that is held, good or not: it is asked for, or no step comes soon."""
        held, self._held = self._held, None
        if held is not None:
            future = self._writer.submit(held.name, held.buffers.tensors, held.meta, pin=held.pin)
            future.add_done_callback(lambda _done: self._pool.give_back(held.buffers))
            self._pending.append((held.name, future))

    def _give_up_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._pool.give_back(held.buffers)

    def store(
        self,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        sequence: int,
        *,
        label: str = "",
        pin: bool = False,
    ) -> str:
        """Save another state than the present one, as :meth:`now` does.

        Args:
            tensors: Nobody may change them meanwhile.
            meta: The rest of that state.
            sequence: The last journal record that it contains.
            label: For people.
            pin: Retention keeps it.

        Raises:
            CheckpointFailed: It could not be written.
        """
        self.wait()
        name = checkpoint_name(meta["step"], meta["timeline"], sequence)
        epoch = meta["data_position"] // self._state.data.steps_per_epoch
        about = {**meta, "sequence": sequence, "job": self._job, "label": label, "epoch": epoch}
        self._pending.append((name, self._writer.submit(name, tensors, about, pin=pin)))
        self.wait()
        if not self._folder.checkpoints.has(name):
            raise CheckpointFailed(f"checkpoint {name} could not be written")
        return name

    def wait(self) -> None:
        """Until everything that isn't held is on disk, or has failed with an alert."""
        self.judge()
        with self._waiting():
            self._settle(block=True)

    def close(self, timeout: float) -> None:
        """Finish what was begun, within ``timeout`` seconds; what is held is given up."""
        self._hook.remove()
        self._give_up_held()
        if self._writer.close(timeout) and self._helper is not None:
            # Else it ends with this process, and what it writes never gets a checkpoint's name.
            self._helper.close()
        self._tell_losses()

    def _make_buffers(self) -> TensorBuffers:
        allocate: Allocate = self._allocate
        if self._helper is not None:
            memory = SharedMemory()
            self._memories.append(memory)
            allocate = memory.allocate
        return TensorBuffers(allocate)

    def _find(self, tensor: Tensor) -> Place | None:
        found = (memory.find(tensor) for memory in self._memories)
        return next((place for place in found if place is not None), None)

    def _after_first_step(self, *_: object) -> None:
        # It is removed at the next fence that saves: torch is going through the hooks here.
        if self._is_prepared:
            return
        self._is_prepared = True
        # An eighth more: a seed that is germinated later shall not need a new block at the fence.
        self._pool.prepare(state_bytes(self._state) * 9 // 8)

    def _note_loss(self, name: str, details: dict[str, str]) -> None:
        """Called on the thread that writes."""
        self._folder.checkpoints.on_event(name, details)
        self._losses.put(details["detail"])

    def _tell_losses(self) -> None:
        while not self._losses.empty():
            self._on_helper_lost(self._losses.get())

    def _settle(self, *, block: bool) -> None:
        waiting = []
        for name, future in self._pending:
            if not block and not future.done():
                waiting.append((name, future))
                continue
            try:
                future.result()
            except CheckpointFailed as error:
                self._on_failed(name, str(error))
                continue
            self._on_saved(name)
            self._note(name)
        self._pending = waiting
        self._tell_losses()

    def _note(self, name: str) -> None:
        note = JournalRecord(checkpoint=CheckpointSaved(name=name))
        try:
            self._folder.write(self._state.stamp(note))
        except JournalUnwritable as error:
            # Only the note is missing: recovery looks at the checkpoints themselves.
            self._on_failed(name, f"durable, but not noted: {error}")


@dataclass(slots=True)
class _Copy:
    """A state that was copied and isn't written yet."""

    name: str
    step: int
    timeline: int
    buffers: TensorBuffers
    meta: dict[str, Any]
    pin: bool
