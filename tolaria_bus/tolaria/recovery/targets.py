"""Choosing the state that a rollback goes to: one that was asked for, or the remedy for a failure.

Only a state to which a checkpoint leads can be chosen: a process that is killed on the way must be
able to come back to it. What is in memory has no say in that, but a state there that has gone bad
is not chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tolaria_bus.leyline import JournalRecord
from tolaria_bus.tolaria.recovery.restore_points import (
    Cadence,
    NoTarget,
    Target,
    ended_epochs,
    leads_to,
    newest_validated,
    restore_points,
    suspect,
)
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.snapshots import Snapshots
from tolaria_bus.tolaria.recovery.state import TrainingState

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


@dataclass
class Targets:
    """Chooses states to go back to. Training thread only.

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
        live, found = self.folder.live, self.folder.live_checkpoints()
        return sum(leads_to(live, target, item.sequence, item.step) for item in found), len(found)

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
