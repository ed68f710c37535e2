"""The states of a run that a rollback can go to.

A *restore point* is a state on the live path, as the run arrived at a fence: before anything that
was decided there. Which steps are restore points follows from the settings and the journal alone,
not from what a process happens to have in memory: so a run that was killed while it chose, chooses
the same again. Whether a restore point is still in memory decides only how fast it is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tolaria_bus.leyline import AdaptationCommand, CommandStatus, CommandType, JournalRecord
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.recovery.timeline import LivePath, position_at

CHANGES_WEIGHTS = frozenset(
    {
        CommandType.COMMAND_SEED,
        CommandType.COMMAND_OPTIMIZER,
        CommandType.COMMAND_LEARNING_RATE,
        CommandType.COMMAND_STRUCTURAL_PRUNING,
    }
)
"""Commands that can be what spoiled a run."""


class NoTarget(ValueError):
    """There is no such state to go back to; one line says which there are."""


@dataclass(frozen=True, slots=True)
class Target:
    """A state to go back to.

    Attributes:
        step: Optimizer steps done.
        sequence: The last journal record whose effect it contains.
    """

    step: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Cadence:
    """Which steps are restore points.

    Attributes:
        every_steps: Every so many steps, ``None``: none for that.
        at_epochs: The ends of epochs.
        steps_per_epoch: Batches in an epoch.
    """

    every_steps: int | None
    at_epochs: bool
    steps_per_epoch: int

    def includes(self, step: int, position: int) -> bool:
        """Is a state a restore point that has done so many steps and drawn so many batches?"""
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        return self.at_epochs and position % self.steps_per_epoch == 0


def newest_validated(last_good_step: int) -> int:
    """The newest step whose weights are known to be good.

    The loss of a step is computed with the weights that the step before left.

    Args:
        last_good_step: The newest step whose loss was read and found sound.
    """
    return max(last_good_step - 1, 0)


def restore_points(live: LivePath, cadence: Cadence, up_to: int) -> Iterator[Target]:
    """Restore points on the live path, newest first; the last one is the run's beginning.

    Args:
        live: The live path.
        cadence: Which steps they are.
        up_to: The newest step to look at.
    """
    cuts = live.cuts()
    for step in range(up_to, 0, -1):
        if cadence.includes(step, position_at(cuts, step)):
            yield Target(step, live.arrival(step))
    yield Target(0, 0)


def leads_to(live: LivePath, target: Target, sequence: int, step: int) -> bool:
    """Does the live path lead from a state to a target?

    Args:
        live: The live path.
        target: Where to.
        sequence: The last journal record that the state contains.
        step: Optimizer steps that it has done.
    """
    return step <= target.step and sequence <= target.sequence and live.is_live(sequence, step)


def ended_epochs(live: LivePath, steps_per_epoch: int, steps: range) -> dict[int, int]:
    """The epochs that ended on the live path at one of these steps: epoch to step.

    An epoch whose last batch a rollback skipped has no end, unless the skipping ended there.
    """
    cuts = live.cuts()
    ended = {}
    for step in steps:
        epoch, rest = divmod(position_at(cuts, step), steps_per_epoch)
        if not rest:
            ended[epoch] = step
    return ended


def suspect(folder: RunFolder, bad_step: int, clean_steps: int) -> JournalRecord | None:
    """The last thing that was decided, if it may be what spoiled the run.

    A decision that ``clean_steps`` sound steps have followed is none (for a rate that is reached
    slowly: since it was reached).

    Args:
        folder: The run's.
        bad_step: The step whose loss was bad.
        clean_steps: After so many a decision is free of suspicion.

    Returns:
        The newest live record of an applied command that can change weights, or ``None``.
    """
    for record in reversed(list(folder.live)):
        if not record.HasField("intent"):
            continue
        command = AdaptationCommand.FromString(record.intent.command)
        if command.command_type not in CHANGES_WEIGHTS:
            continue
        result = folder.ledger.finished(record.intent.command_id)
        if (
            result is not None
            and result.outcome.status == CommandStatus.COMMAND_STATUS_APPLIED
            and bad_step <= record.step + command.learning_rate.warmup_steps + clean_steps
        ):
            return record
    return None
