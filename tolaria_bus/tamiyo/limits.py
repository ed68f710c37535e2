"""What no policy may do, whatever it is: the risk that whoever runs Tamiyo is willing to take.

How often and when Tamiyo intervened is in the state packet: the run counts it, and it survives the
run's crashes and Tamiyo's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tolaria_bus.leyline import AdaptationCommand, CommandType, SystemStatePacket
from tolaria_bus.leyline import SeedOperation as Operation
from tolaria_bus.leyline.codec import hyperparameters, short_name
from tolaria_bus.leyline.enums import short_names
from tolaria_bus.tamiyo.seeds import ALIVE

_FORBIDDEN: Final = frozenset(
    {
        CommandType.COMMAND_UNKNOWN,
        CommandType.COMMAND_STOP,
        CommandType.COMMAND_RESUME,
        CommandType.COMMAND_CIRCUIT_BREAKER,
        CommandType.COMMAND_CANCEL,
    }
)
"""What is for people: a policy that could end a run, or undo what stopped it, would be one too."""
_ALWAYS: Final = frozenset(
    {
        CommandType.COMMAND_CONTINUE,
        CommandType.COMMAND_PAUSE,
        CommandType.COMMAND_EMERGENCY,
        CommandType.COMMAND_CHECKPOINT,
    }
)
"""What holds on to a run; no budget is needed for that."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The risk limits of one Tamiyo.

    Attributes:
        seeds: Seeds under way at once.
        seed_rest: Epochs between the last thing done to a seed and a germination.
        lr_change: How much a rate may change in one decision: a factor, up or down.
        lr_rest: Epochs between two changes of the rate.
        interventions: Answers that change something, in the life of a run; culls are free.

    Raises:
        ValueError: A limit is out of range.
    """

    seeds: int = 2
    seed_rest: int = 1
    lr_change: float = 4.0
    lr_rest: int = 1
    interventions: int = 200

    def __post_init__(self) -> None:
        for name in ("seeds", "seed_rest", "lr_rest", "interventions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 or more")
        if not (self.lr_change >= 1.0 and math.isfinite(self.lr_change)):
            raise ValueError(f"lr_change = {self.lr_change}: must be 1 or more")

    def refuses(self, command: AdaptationCommand, packet: SystemStatePacket) -> str:
        """Why a policy's command goes too far, in one line; empty if it doesn't."""
        kind = command.command_type
        if kind in _FORBIDDEN or kind not in CommandType.values():
            allowed = set(CommandType.values()) - _FORBIDDEN
            return f"a policy may not say {short_name(CommandType, kind)}; allowed: " + ", ".join(
                name
                for name in short_names(CommandType.DESCRIPTOR)
                if CommandType.Value(f"COMMAND_{name}") in allowed
            )
        if kind in _ALWAYS or _is_cull(command):
            return ""
        used = packet.training_metrics.get("tamiyo.interventions", 0.0)
        if used >= self.interventions:
            return f"{self.interventions} interventions are used up"
        if kind == CommandType.COMMAND_LEARNING_RATE:
            return self._rate(command, packet)
        if kind == CommandType.COMMAND_OPTIMIZER:
            adjusted = command.optimizer_adjustment
            if "lr" in hyperparameters(adjusted.hyperparameters, adjusted.values):
                return "a rate is changed by a learning-rate command only"
        if kind == CommandType.COMMAND_SEED:
            return self._seed(command, packet)
        return ""

    def _seed(self, command: AdaptationCommand, packet: SystemStatePacket) -> str:
        if command.seed_operation.operation != Operation.SEED_OP_GERMINATE:
            return ""
        alive = sum(seed.stage in ALIVE for seed in packet.seed_states)
        if alive >= self.seeds:
            return f"{alive} seeds are under way; allowed: {self.seeds}"
        return self._rest("seed", self.seed_rest, packet)

    def _rate(self, command: AdaptationCommand, packet: SystemStatePacket) -> str:
        wanted = command.learning_rate
        factor = wanted.factor
        if wanted.HasField("learning_rate"):
            groups = [wanted.group] if wanted.group else []
            prefix = "learning_rate."
            rates = [
                rate
                for name, rate in packet.training_metrics.items()
                if name.startswith(prefix) and (not groups or name[len(prefix) :] in groups)
            ]
            factor = wanted.learning_rate / max(rates, default=math.nan)
        if not 1.0 / self.lr_change <= factor <= self.lr_change:
            return f"a rate times {factor:g}; allowed: {1 / self.lr_change:g} to {self.lr_change:g}"
        return self._rest("learning_rate", self.lr_rest, packet)

    @staticmethod
    def _rest(what: str, epochs: int, packet: SystemStatePacket) -> str:
        since = packet.training_metrics.get(f"tamiyo.epochs_since.{what}", math.inf)
        if since >= epochs:
            return ""
        return f"the last {what} command was {since:g} epochs ago; allowed: {epochs} or more"


def _is_cull(command: AdaptationCommand) -> bool:
    takes_away = (Operation.SEED_OP_CULL, Operation.SEED_OP_CANCEL)
    return (
        command.command_type == CommandType.COMMAND_SEED
        and command.seed_operation.operation in takes_away
    )
