"""What a policy says, as the commands that a run knows; each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandEmergency,
    CommandLearningRate,
    CommandSeedOperation,
    CommandType,
    EmergencyLevel,
    SeedOperation,
    SystemStatePacket,
)
from tolaria_bus.leyline.annotations import REASON
from tolaria_bus.tamiyo.history import History


class Policy(Protocol):
    """Answers a run's state. Pure: the same for the same arguments, and no clock, no generator."""

    def __call__(self, packet: SystemStatePacket, history: History) -> AdaptationCommand | None:
        """What to do now; ``None``: nothing, which is an answer as well.

        Args:
            packet: The run at the end of an epoch.
            history: At the ends of the epochs before.

        Returns:
            A command with its type, payload, target and annotations; ids, times and what it answers
            are filled in.
        """


def nothing(reason: str = "") -> AdaptationCommand:
    """Go on as before."""
    return _because(AdaptationCommand(command_type=CommandType.COMMAND_CONTINUE), reason)


def pause(reason: str) -> AdaptationCommand:
    """Hold the run until a person has looked."""
    return _because(AdaptationCommand(command_type=CommandType.COMMAND_PAUSE), reason)


def emergency(level: EmergencyLevel.ValueType, reason: str) -> AdaptationCommand:
    """Raise an emergency of this run."""
    command = AdaptationCommand(
        command_type=CommandType.COMMAND_EMERGENCY, emergency=CommandEmergency(level=level)
    )
    return _because(command, reason)


def learning_rate(factor: float, reason: str) -> AdaptationCommand:
    """Multiply the base rate of every group."""
    command = AdaptationCommand(
        command_type=CommandType.COMMAND_LEARNING_RATE,
        learning_rate=CommandLearningRate(factor=factor),
    )
    return _because(command, reason)


def seed(
    operation: SeedOperation.ValueType,
    seed_id: str,
    reason: str,
    *,
    blueprint: str = "",
    slot: str = "",
    values: Mapping[str, float] | None = None,
) -> AdaptationCommand:
    """Do something to a seed.

    Args:
        operation: What.
        seed_id: Which one; a new name where it germinates.
        reason: Why.
        blueprint: What grows, where it germinates.
        slot: Where.
        values: The operation's or the blueprint's parameters.
    """
    wanted = CommandSeedOperation(operation=operation, blueprint_id=blueprint, slot=slot)
    if values:
        wanted.values.update(values)
    command = AdaptationCommand(
        command_type=CommandType.COMMAND_SEED, target_seed_id=seed_id, seed_operation=wanted
    )
    return _because(command, reason)


def _because(command: AdaptationCommand, reason: str) -> AdaptationCommand:
    if reason:
        command.annotations[REASON] = reason
    return command
