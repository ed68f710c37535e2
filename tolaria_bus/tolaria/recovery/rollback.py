"""Going back to an earlier state of a run, on a new timeline.

Two tiers. *Fast*: the state is in memory, and one copy brings it back. *Full*: the newest
checkpoint that lies before it is loaded, and the journal's records and the steps between are run
again, as after a crash; the checkpoint may be the state itself, and then nothing is to be run.

The journal gets the cut before anything changes. It names the target by step and last record, which
is all that recovery needs: a process that dies at any moment of a rollback comes back by the full
way, whichever tier it was, to the same bits. The cut also says what a rollback changes beside the
state: timeline, data position, learning rates; the mode goes on.

Which state it is has been chosen before: :mod:`.targets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tolaria_bus.leyline import Decision, JournalRecord, TimelineCut
from tolaria_bus.tolaria.recovery.checkpoints import LoadedCheckpoint
from tolaria_bus.tolaria.recovery.ledger import HALT, HALTED_AT
from tolaria_bus.tolaria.recovery.restore_points import NoTarget, Target, leads_to
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.snapshots import Snapshot, Snapshots
from tolaria_bus.tolaria.recovery.state import TrainingState, restore
from tolaria_bus.tolaria.recovery.timeline import position_at

FAST, FULL = "fast", "full"


@dataclass(frozen=True, slots=True)
class Halt:
    """A run's own decision to stand still where a rollback has led.

    Attributes:
        reason: For people.
        at: When it was taken, as the id that the server would have given an entry then; empty
            where there is no server.
    """

    reason: str
    at: str


@dataclass(frozen=True, slots=True)
class Source:
    """From where a state comes back: a snapshot that is it, or a checkpoint before it."""

    snapshot: Snapshot | None = None
    checkpoint: LoadedCheckpoint | None = None

    @property
    def tier(self) -> str:
        """``fast`` or ``full``."""
        return FULL if self.snapshot is None else FAST

    @property
    def sequence(self) -> int:
        """The last journal record that the state contains."""
        if self.snapshot is not None:
            return self.snapshot.sequence
        assert self.checkpoint is not None
        sequence: int = self.checkpoint.meta["sequence"]
        return sequence


@dataclass
class Rollback:
    """Goes back to a state that was chosen. Training thread only.

    Attributes:
        state: Of the run.
        folder: Its journal and checkpoints.
        snapshots: Its states in memory.
    """

    state: TrainingState
    folder: RunFolder
    snapshots: Snapshots

    def source(self, target: Target, *, tier: str = FAST) -> Source:
        """Find and check what a state comes back from; nothing is changed.

        Args:
            target: Which state.
            tier: ``full``: don't trust what is in memory.

        Raises:
            NoTarget: There is nothing.
        """
        if tier == FAST:
            snapshot = self.snapshots.find(target.step, target.sequence)
            if snapshot is not None and snapshot.finite():
                return Source(snapshot=snapshot)
        checkpoint = self.folder.checkpoints.newest(
            lambda sequence, step: leads_to(self.folder.live, target, sequence, step)
        )
        if checkpoint is None:
            raise NoTarget(f"no checkpoint leads to step {target.step}")
        return Source(checkpoint=checkpoint)

    def write_cut(
        self,
        target: Target,
        source: Source,
        *,
        replay_data: bool,
        lr_factor: float,
        cause: str,
        command_id: str = "",
        halt: Halt | None = None,
    ) -> JournalRecord:
        """Journal the rollback: from here on the run is on its way to the target.

        Args:
            target: Where it goes.
            source: From :meth:`source`.
            replay_data: Draw the batches since the target again; else they are skipped.
            lr_factor: Multiplies every learning rate of the target.
            cause: ``command``, ``not_finite``, ``spike``, ``accuracy``.
            command_id: The command that asked for it.
            halt: The run is halted once it is there.

        Raises:
            JournalUnwritable: Nothing was changed.
        """
        state = self.state
        position = state.data.position
        if replay_data:
            position = position_at(self.folder.live.cuts(), target.step, target.sequence)
        cut = TimelineCut(
            from_timeline=state.timeline,
            from_step=state.step,
            target_sequence=target.sequence,
            target_step=target.step,
            checkpoint="" if source.checkpoint is None else source.checkpoint.name,
            data_position=position,
            lr_factor=lr_factor,
            cause=cause,
            command_id=command_id,
            mode=state.mode,
            tier=source.tier,
        )
        record = JournalRecord(
            timeline=self.folder.ledger.last_timeline + 1,
            step=target.step,
            epoch=position // state.data.steps_per_epoch,
            cut=cut,
        )
        if halt is None:
            self.folder.write(record)
            return record
        decision = JournalRecord(
            timeline=record.timeline,
            step=record.step,
            epoch=record.epoch,
            decision=Decision(kind=HALT, reason=halt.reason, values={HALTED_AT: halt.at}),
        )
        self.folder.write(record, decision)
        return record

    def restore(self, source: Source, cut: JournalRecord) -> list[JournalRecord]:
        """Bring the source's state back, and give up the snapshots that the cut undid.

        Args:
            source: From :meth:`source`.
            cut: From :meth:`write_cut`.

        Returns:
            The journal's records to apply from there, each at its step.
        """
        saved = source.snapshot or source.checkpoint
        assert saved is not None
        restore(self.state, saved.tensors, saved.meta)
        self.snapshots.drop(self.folder.live.is_live)
        if source.checkpoint is not None:
            return self.folder.live_after(source.sequence)
        # Not read from disk: the cut, and a halt that was written with it, are all there is.
        return [record for record in self.folder.live if record.sequence >= cut.sequence]

    def apply(self, cut: TimelineCut, timeline: int) -> None:
        """Go on from the target's state as a cut says."""
        state = self.state
        # It is the same state whether or not the loss of its last step had been looked at.
        reading = state.watch.flush()
        if reading is not None:
            state.last_loss, state.last_loss_step = reading.loss, reading.step
        state.enter(cut.data_position, timeline)
        state.mode.CopyFrom(cut.mode)
        if cut.lr_factor != 1.0:
            state.learning_rate.scale(cut.lr_factor, state.step)

    def mark_checkpoints(self) -> None:
        """Mark the checkpoints that rollbacks undid, so that retention doesn't count them as live.

        Raises:
            OSError: A mark can't be written.
        """
        cuts = self.folder.cuts()
        if cuts:
            self.folder.checkpoints.mark_cut(self.folder.live.is_live, cuts[-1].sequence)


def describe(cut: TimelineCut, timeline: int) -> dict[str, Any]:
    """A cut as details of an outcome or an event."""
    return {
        "from_step": cut.from_step,
        "target_step": cut.target_step,
        "tier": cut.tier,
        "checkpoint": cut.checkpoint,
        "timeline": timeline,
        "data_position": cut.data_position,
        "lr_factor": cut.lr_factor,
        "cause": cut.cause,
    }
