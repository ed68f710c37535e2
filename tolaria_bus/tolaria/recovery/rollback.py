"""Going back to an earlier state of a run, on a new timeline.

Two tiers. *Fast*: the state is in memory, and one copy brings it back. *Full*: the newest
checkpoint that lies before it is loaded, and the journal's records and the steps between are run
again, as after a crash; the checkpoint may be the state itself, and then nothing is to be run.

The journal gets the cut before anything changes. It names the target by step and last record, which
is all that recovery needs: a process that dies at any moment of a rollback comes back by the full
way, whichever tier it was, to the same bits. The cut also says what a rollback changes beside the
state: timeline, data position, learning rates; the mode goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tolaria_bus.leyline import Decision, JournalRecord, TimelineCut
from tolaria_bus.tolaria.recovery.checkpoints import LoadedCheckpoint
from tolaria_bus.tolaria.recovery.ledger import HALT, HALTED_AT
from tolaria_bus.tolaria.recovery.restore_points import (
    Cadence,
    NoTarget,
    Target,
    ended_epochs,
    newest_validated,
    restore_points,
    suspect,
)
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.snapshots import Snapshot, Snapshots
from tolaria_bus.tolaria.recovery.state import TrainingState, restore
from tolaria_bus.tolaria.recovery.timeline import position_at

FAST, FULL = "fast", "full"
COMMAND = "command"
"""Cause of a rollback that somebody asked for."""
ACCURACY = "accuracy"
"""Cause of one after a collapse of the accuracy; the others are the verdicts on a loss."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What an automatic rollback is to do.

    Attributes:
        target: Where it goes.
        attempt: How many in a row this is, with those before that didn't help.
        lr_factor: Multiplies the learning rates of the target.
    """

    target: Target
    attempt: int
    lr_factor: float


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
    """Chooses states to go back to, and goes. Training thread only.

    Attributes:
        state: Of the run.
        folder: Its journal and checkpoints.
        snapshots: Its states in memory.
        cadence: Which states may be gone back to by themselves.
        settle: Waits until the checkpoints that were begun are written, and old ones removed.
        clean_steps: So many sound steps beyond where it failed, and a failure is overcome.
        lr_factor: Learning rates after an automatic rollback, once more for each in a row.
    """

    state: TrainingState
    folder: RunFolder
    snapshots: Snapshots
    cadence: Cadence
    settle: Callable[[], None] = lambda: None
    clean_steps: int = 100
    lr_factor: float = 0.5

    # Where to

    def newest(self) -> Target:
        """The newest restore point that is known to be good.

        Raises:
            NoTarget: There is no checkpoint to reach any from.
        """
        return self._first(self._points())

    def at_step(self, step: int) -> Target:
        """The state in which the run arrived at a step of its live path.

        Raises:
            NoTarget: It hasn't been there, or no checkpoint is old enough.
        """
        target = Target(step, self.folder.live.arrival(step))
        if step > self.state.step or not self._can_reach(target):
            reach = range(self._oldest(), self.state.step + 1)
            raise NoTarget(
                f"target_step = {step}: steps {reach.start} to {reach.stop - 1} can be reached"
            )
        return target

    def at_epoch(self, epoch: int) -> Target:
        """The state in which the run arrived at the end of an epoch.

        Raises:
            NoTarget: It has none on the live path, or no checkpoint is old enough.
        """
        steps = range(self._oldest(), self.state.step + 1)
        ended = ended_epochs(self.folder.live, self.cadence.steps_per_epoch, steps)
        reachable = {
            number: target
            for number, step in ended.items()
            if self._can_reach(target := Target(step, self.folder.live.arrival(step)))
        }
        if epoch not in reachable:
            raise NoTarget(
                f"target_epoch = {epoch}: the ends of {sorted(reachable)} can be reached"
            )
        return reachable[epoch]

    def remedy(self, cause: str, bad_step: int) -> Remedy:
        """What to do about a failure that the run has found by itself.

        The first time it goes back to the newest good state. If the failure strikes again before
        the run has got ``clean_steps`` beyond it, that state, good as it was, may hold what leads
        there: so the next one goes to before the last thing that was decided, if that is recent
        enough to be the reason, and else to an older state than the time before.

        Args:
            cause: ``not_finite``, ``spike`` or ``accuracy``.
            bad_step: The step at which it was found.

        Raises:
            NoTarget: There is no checkpoint to reach any state from.
        """
        before = self._in_a_row(bad_step)
        points = self._checkpoints() if cause == ACCURACY else self._points()
        if before:
            decision = suspect(self.folder, bad_step, self.clean_steps)
            last = before[-1].cut.target_step
            points = (
                target
                for target in points
                if (target.step < last if decision is None else target.sequence < decision.sequence)
            )
        target = self._first(points)
        attempt = len(before) + 1
        kept = math.prod(
            record.cut.lr_factor
            for record in before
            if record.sequence <= target.sequence and self.folder.live.is_live(record.sequence)
        )
        return Remedy(target, attempt, self.lr_factor**attempt / kept)

    # The way

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
            lambda sequence, step: self._leads_to(target, sequence, step)
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
            epoch=position // self.cadence.steps_per_epoch,
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

    def _points(self) -> Iterator[Target]:
        up_to = min(newest_validated(self.state.last_loss_step), self.state.step)
        return restore_points(self.folder.live, self.cadence, up_to)

    def _checkpoints(self) -> Iterator[Target]:
        self.settle()
        for item in reversed(self.folder.live_checkpoints()):
            if item.step < self.state.step:
                yield Target(item.step, item.sequence)

    def _first(self, points: Iterator[Target]) -> Target:
        """The first that is sound and can be reached; the oldest checkpoint if none can."""
        for target in points:
            if not self._can_reach(target):
                continue
            snapshot = self.snapshots.find(target.step, target.sequence)
            if snapshot is None or snapshot.finite():
                return target
        for item in self.folder.live_checkpoints():
            return Target(item.step, item.sequence)
        raise NoTarget("there is no checkpoint to go back to")

    def _can_reach(self, target: Target) -> bool:
        """Does a checkpoint lead there? What is in memory doesn't count: a killed run lost it."""
        leading, live = self._leading(target)
        if leading == 1 and self.folder.checkpoints.makes_room(live):
            # The one that is being written may take its place: after a kill it may have.
            self.settle()
            leading, _ = self._leading(target)
        return leading > 0

    def _leading(self, target: Target) -> tuple[int, int]:
        """How many live checkpoints lead there, and how many there are."""
        live = self.folder.live_checkpoints()
        return sum(self._leads_to(target, item.sequence, item.step) for item in live), len(live)

    def _leads_to(self, target: Target, sequence: int, step: int) -> bool:
        """Does the live path lead from a state that has done ``step`` steps to the target?"""
        return (
            step <= target.step
            and sequence <= target.sequence
            and self.folder.live.is_live(sequence, step)
        )

    def _oldest(self) -> int:
        return min((item.step for item in self.folder.live_checkpoints()), default=0)

    def _in_a_row(self, bad_step: int) -> list[JournalRecord]:
        """The rollbacks by itself that this failure shows not to have helped, oldest first."""
        row: list[JournalRecord] = []
        reached = 0
        for record in self.folder.cuts():
            if record.cut.cause == COMMAND:
                row, reached = [], 0
                continue
            if record.cut.from_step > reached + self.clean_steps:
                row, reached = [], 0
            row.append(record)
            reached = max(reached, record.cut.from_step)
        return row if bad_step <= reached + self.clean_steps else []


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
