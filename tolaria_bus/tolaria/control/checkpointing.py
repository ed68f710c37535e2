"""When a run's state is kept, on disk and in memory, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from tolaria_bus.safety.breakers import CHECKPOINT
from tolaria_bus.safety.emergency import CHECKPOINT_FAILED
from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.control.guards import Guards
from tolaria_bus.tolaria.control.steerable import Details
from tolaria_bus.tolaria.control.telemetry import Telemetry
from tolaria_bus.tolaria.recovery.checkpoint_info import parse_name
from tolaria_bus.tolaria.recovery.checkpoints import CheckpointFailed
from tolaria_bus.tolaria.recovery.disk_helper import HELPER_LOST
from tolaria_bus.tolaria.recovery.restore_points import newest_validated
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.saving import Saving
from tolaria_bus.tolaria.recovery.snapshots import Snapshots
from tolaria_bus.tolaria.recovery.state import TrainingState


class Checkpointing:
    """Keeps states of one run. Training thread only, at a fence.

    Args:
        state: Of the run.
        folder: Where checkpoints go.
        settings: How many are kept, and who writes.
        telemetry: Told what became of them.
        guards: Has the breaker of a disk that refuses.
        job: The job's name.
        waiting: Entered while the training thread waits for the disk.
        contained: The last journal record whose effect the present state has.
        healthy: Waits for the newest loss: is the present state good?
        check: Likewise, and goes back if it isn't.
        mark: Marks checkpoints that a rollback undid.
        note: Told the cause of an emergency, and its reason.

    Attributes:
        snapshots: The states in memory.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: RunFolder,
        settings: Settings,
        telemetry: Telemetry,
        guards: Guards,
        *,
        job: str,
        waiting: Callable[[], AbstractContextManager[None]],
        contained: Callable[[], int],
        healthy: Callable[[], bool],
        check: Callable[[], bool],
        mark: Callable[[], None],
        note: Callable[[str, str], None] = lambda cause, reason: None,
    ) -> None:
        self.snapshots = Snapshots(
            keep=settings.snapshot_keep,
            max_bytes=settings.snapshot_memory_mb * 1_000_000,
            pinned=next(state.model.parameters()).is_cuda,
        )
        self._state = state
        self._folder = folder
        self._telemetry = telemetry
        self._guards = guards
        self._contained = contained
        self._healthy = healthy
        self._check = check
        self._mark = mark
        self._note = note
        self._saving = Saving(
            state,
            folder,
            job=job,
            on_saved=self._saved,
            on_failed=self._not_saved,
            on_helper_lost=lambda why: telemetry.warning(HELPER_LOST, why),
            waiting=waiting,
            writer=settings.checkpoint_writer,
        )

    def save(self, *, label: str = "", pin: bool = False) -> str:
        """Make the present state durable and wait; the last good one if this one isn't healthy.

        Raises:
            CheckpointFailed: It could not be written.
        """
        if self._healthy():
            return self._saving.now(self._contained(), label=label, pin=pin)
        good = self.snapshots.newest(newest_validated(self._state.last_loss_step))
        if good is not None:
            return self._saving.store(good.tensors, good.meta, good.sequence, label=label, pin=pin)
        return self._newest()

    def save_halted(self) -> Details:
        """The run is halted: make its newest good state durable, and tell.

        A disk that can't take it stops no HALT: the journal has all that is needed.

        Returns:
            Details for the outcome: ``checkpoint`` and ``checkpoint_step``, or
            ``checkpoint_failed``.
        """
        state, details = self._state, Details()
        try:
            name = self.save(label="halt")
        except CheckpointFailed as error:
            details["checkpoint_failed"] = kept = str(error)
        else:
            details["checkpoint"] = name
            if name:
                details["checkpoint_step"] = parse_name(name)[0]
            kept = f"{name} is durable" if name else "there is no checkpoint"
        self._telemetry.alert(
            "halted",
            f"halted at step {state.step}: {state.mode.reason}; {kept}; RESUME goes on",
            by=state.mode.by,
            reason=state.mode.reason,
            **details,
        )
        return details

    def save_later(self) -> None:
        """Copy the present state and write it behind the training, if it is healthy.

        A disk that refuses again and again isn't asked at each epoch: its breaker is open.
        """
        if self._check() and self._guards.allows(CHECKPOINT):
            self._saving.later(self._contained())

    @property
    def holding(self) -> bool:
        """A checkpoint is copied and waits for the next loss."""
        return self._saving.holding

    def judge(self) -> None:
        """Write the checkpoint that waits, if the newest loss shows that it is good."""
        self._saving.judge()

    def stand_still(self) -> None:
        """No step comes for now: a checkpoint that waits for a loss is written without it."""
        if self._healthy():
            self._saving.release()

    def save_at_end(self) -> str:
        """Make the last state durable; without that the next start goes on from the one before."""
        try:
            return self.save(label="end")
        except CheckpointFailed as error:
            self._telemetry.event("checkpoint_failed", str(error))
            return self._newest()

    def take_snapshot(self) -> None:
        """Copy the present state into memory, to go back to should it prove good."""
        snapshots = self.snapshots
        if not snapshots.refused and not snapshots.take(self._state, self._contained()):
            self._telemetry.alert("snapshots_off", snapshots.refused)

    def wait(self) -> None:
        """Until what is being written is written."""
        self._saving.wait()

    def close(self, seconds: float) -> None:
        """Finish the checkpoints that were begun, within so many seconds."""
        self._saving.close(seconds)

    def _saved(self, name: str) -> None:
        self._telemetry.event("checkpoint", f"{name} is durable")
        self._guards.succeeded(CHECKPOINT)
        step, _, sequence = parse_name(name)
        if not self._folder.live.is_live(sequence, step):
            # A rollback undid it while it was being written.
            self._mark()

    def _not_saved(self, name: str, why: str) -> None:
        self._telemetry.alert("checkpoint_failed", why, checkpoint=name)
        self._guards.failed(CHECKPOINT, why)
        self._note(CHECKPOINT_FAILED, why)

    def _newest(self) -> str:
        self._saving.wait()
        live = self._folder.live_checkpoints()
        return live[-1].name if live else ""
