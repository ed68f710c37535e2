"""Checkpoints as the trainer makes them: one copy at the fence, the writing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from tolaria_bus.leyline import CheckpointSaved, JournalRecord
from tolaria_bus.tolaria.recovery.checkpoints import (
    CheckpointFailed,
    CheckpointWriter,
    checkpoint_name,
)
from tolaria_bus.tolaria.recovery.journal import JournalUnwritable
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState, capture


class Saving:
    """Saves the state of one run. Training thread only; a writer thread does the disk's part.

    Args:
        state: What to save.
        folder: Where.
        job: The job's name, kept with each checkpoint.
        on_saved: Told the name of a checkpoint that is durable.
        on_failed: Told the name of one that could not be written, and why.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder,
        *,
        job: str,
        on_saved: Callable[[str], None],
        on_failed: Callable[[str, str], None],
    ) -> None:
        self._state = state
        self._folder = folder
        self._job = job
        self._on_saved = on_saved
        self._on_failed = on_failed
        self._writer = CheckpointWriter(folder.checkpoints)
        self._pending: list[tuple[str, Future[str]]] = []
        self._last = ""

    def now(self, sequence: int, *, label: str = "", pin: bool = False) -> str:
        """Save, wait until it is durable and verified, return its name.

        Args:
            sequence: The last journal record that the state contains.
            label: For people.
            pin: Retention keeps it.

        Raises:
            CheckpointFailed: It could not be written; the ones before are intact.
        """
        self.later(sequence, label=label, pin=pin)
        self.wait()
        if not self._folder.checkpoints.has(self._last):
            raise CheckpointFailed(f"checkpoint {self._last} could not be written")
        return self._last

    def later(self, sequence: int, *, label: str = "", pin: bool = False) -> None:
        """Copy the state now, write it behind the training; a failure is an alert."""
        self._settle(block=False)
        state = self._state
        name = checkpoint_name(state.step, state.timeline, sequence)
        self._last = name
        if self._folder.checkpoints.has(name) or any(name == other for other, _ in self._pending):
            # Nothing has changed since.
            if pin:
                self.wait()
                self._folder.checkpoints.pin(name)
            return
        tensors, meta = capture(state)
        meta.update(sequence=sequence, job=self._job, label=label, epoch=state.epoch)
        self._pending.append((name, self._writer.submit(name, tensors, meta, pin=pin)))

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
        """Until everything that was submitted is on disk, or has failed with an alert."""
        self._settle(block=True)

    def close(self, timeout: float) -> None:
        """Finish what was begun, within ``timeout`` seconds."""
        self._writer.close(timeout)

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

    def _note(self, name: str) -> None:
        state = self._state
        note = CheckpointSaved(name=name)
        try:
            self._folder.write(
                JournalRecord(
                    timeline=state.timeline, step=state.step, epoch=state.epoch, checkpoint=note
                )
            )
        except JournalUnwritable as error:
            # Only the note is missing: recovery looks at the checkpoints themselves.
            self._on_failed(name, f"durable, but not noted: {error}")
