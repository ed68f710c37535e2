"""Going back to a checkpoint, on a new timeline.

The journal gets the cut before anything changes, so that a process which dies in the middle
comes back to the same state: the checkpoint named there, with the timeline number, the data
position, the learning rates and the mode that the cut says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tolaria_bus.leyline import JournalRecord, TimelineCut
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.state import TrainingState, restore


class NoTarget(ValueError):
    """There is no checkpoint to go back to; one line says which there are."""


@dataclass
class Rollback:
    """The full tier: from a checkpoint on disk. Training thread only."""

    state: TrainingState
    folder: RunFolder

    def target(self, step: int | None = None, epoch: int | None = None) -> str:
        """The newest good checkpoint of the live timeline, or the one at a step or epoch.

        Raises:
            NoTarget: There is none, or none there.
        """
        live = self.folder.live_checkpoints()
        if step is not None:
            live = [item for item in live if item.step == step]
        if epoch is not None:
            live = [item for item in live if item.epoch == epoch]
        if not live:
            steps = sorted({item.step for item in self.folder.live_checkpoints()})
            asked = f"step {step}" if step is not None else f"epoch {epoch}"
            raise NoTarget(f"target {asked}: no checkpoint; there are steps {steps}")
        return live[-1].name

    def go(
        self,
        checkpoint: str,
        *,
        replay_data: bool,
        lr_factor: float,
        cause: str,
        command_id: str = "",
    ) -> TimelineCut:
        """Journal the cut, restore the checkpoint, start the next timeline.

        Args:
            checkpoint: Its name, from :meth:`target`.
            replay_data: Draw the batches since the checkpoint again; else they are skipped.
            lr_factor: Multiplies every learning rate of the checkpoint.
            cause: ``command``, ``not_finite``, ``spike``.
            command_id: The command that asked for it.

        Returns:
            The cut, as journaled.

        Raises:
            CheckpointCorrupt: It can't be read any more; nothing was changed.
            JournalUnwritable: Nothing was changed.
        """
        tensors, meta = self.folder.checkpoints.load(checkpoint)
        timeline = self.folder.ledger.last_timeline + 1
        cut = TimelineCut(
            from_timeline=self.state.timeline,
            from_step=self.state.step,
            target_sequence=meta["sequence"],
            target_step=meta["step"],
            checkpoint=checkpoint,
            data_position=meta["data_position"] if replay_data else self.state.data.position,
            lr_factor=lr_factor,
            cause=cause,
            command_id=command_id,
            mode=self.state.mode,
        )
        self.folder.write(
            JournalRecord(timeline=timeline, step=cut.target_step, epoch=self.state.epoch, cut=cut)
        )
        restore(self.state, tensors, meta)
        self.apply(cut, timeline)
        return cut

    def apply(self, cut: TimelineCut, timeline: int) -> None:
        """What a cut changes beside restoring its checkpoint."""
        state = self.state
        state.timeline = timeline
        state.data.seek(cut.data_position, timeline)
        state.mode.CopyFrom(cut.mode)
        if cut.lr_factor != 1.0:
            state.learning_rate.scale(cut.lr_factor, state.step)

    def automatic_count(self, checkpoint: str, cause: str) -> int:
        """How often the run has gone back to this checkpoint by itself for this cause."""
        return sum(
            1
            for record in self.folder.cuts()
            if record.cut.checkpoint == checkpoint and record.cut.cause == cause
        )


def describe(cut: TimelineCut, timeline: int) -> dict[str, Any]:
    """A cut as details of an outcome or an event."""
    return {
        "from_step": cut.from_step,
        "target_step": cut.target_step,
        "checkpoint": cut.checkpoint,
        "timeline": timeline,
        "data_position": cut.data_position,
        "lr_factor": cut.lr_factor,
        "cause": cut.cause,
    }
