"""What commands act upon, what their effects are, and how they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tolaria_bus.leyline import AdaptationCommand, Decision, EmergencyLevel, TimelineCut
from tolaria_bus.tolaria.control.emergencies import Emergencies
from tolaria_bus.tolaria.control.observing import Observations
from tolaria_bus.tolaria.control.profiling import Profiling
from tolaria_bus.tolaria.control.seeds import SeedWork
from tolaria_bus.tolaria.engine.numbers import is_number
from tolaria_bus.tolaria.recovery.restore_points import Target
from tolaria_bus.tolaria.recovery.state import TrainingState

if TYPE_CHECKING:
    from tolaria_bus.tolaria.control.handshake import Handshake

Details = dict[str, Any]
Effect = Callable[[], Details]


class CommandRefused(ValueError):
    """A command can't be applied. The run is unchanged.

    Attributes:
        code: One word for programs.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def finite_number(field: str, value: object) -> float:
    """A number that a command brings.

    Raises:
        CommandRefused: ``out_of_range``: it isn't one, or not finite.
    """
    if not is_number(value):
        raise CommandRefused("out_of_range", f"{field} = {value!r}: must be a finite number")
    return float(value)


class Steerable(Protocol):
    """What commands act upon: the trainer, as far as they need it."""

    state: TrainingState
    stopping: str
    seeds: SeedWork
    observations: Observations
    emergencies: Emergencies
    profiling: Profiling
    handshake: Handshake

    def admit(self, command: AdaptationCommand) -> None:
        """Refuse a new command whose breaker is open.

        Raises:
            CommandRefused: ``breaker_open``.
        """

    def tried(self, command: AdaptationCommand, *, failure: str) -> None:
        """Tell the breakers how a command went: why it failed, empty if it was applied."""

    def save_checkpoint(self, *, label: str = "", pin: bool = False) -> str:
        """Make the present state durable, wait for it, return its name.

        Raises:
            CheckpointFailed: It could not be written.
        """

    def make_halt_durable(self) -> Details:
        """The run is halted: make its newest good state durable, and tell.

        Returns:
            Details for the outcome: ``checkpoint`` and ``checkpoint_step``, or
            ``checkpoint_failed``.
        """

    def stand_still(self) -> None:
        """No step comes for now: a checkpoint that waits for a loss is written without it."""

    def rollback_target(self, target_step: int | None, target_epoch: int | None) -> Target:
        """The state that a rollback would go to, or :class:`CommandRefused`."""

    def roll_back(
        self, target: Target, *, replay_data: bool, lr_factor: float, cause: str, command_id: str
    ) -> Details:
        """Go back to an earlier state on a new timeline.

        Returns:
            Details for the outcome; ``target_step`` and ``timeline`` say where the run is then.

        Raises:
            CommandRefused: ``no_checkpoint``.
        """

    def stop(self, reason: str) -> None:
        """End the run at this fence."""

    def apply_cut(self, cut: TimelineCut, timeline: int) -> None:
        """Apply a journaled rollback to the state that it went to."""

    def apply_decision(self, decision: Decision) -> None:
        """Apply a journaled choice of the trainer's own."""

    def announce(
        self,
        level: EmergencyLevel.ValueType,
        reason: str,
        scope: str,
        runs: str,
        *,
        command_id: str,
    ) -> None:
        """Broadcast an emergency signal. The same command's, if it is sent again, is the same."""
