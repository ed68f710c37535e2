"""The policy that is shipped: rules of thumb, each with its reason, one command a time.

In order: what can't go on (a loss that isn't finite, or far from its best for long), what goes
wrong (a loss that rises), seeds that are under way, and last what doesn't get better (a plateau):
a seed where one can grow, else a lower learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tolaria_bus.leyline import (
    AdaptationCommand,
    EmergencyLevel,
    SystemStatePacket,
)
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedOperation as Operation
from tolaria_bus.tamiyo.advice import emergency, learning_rate, pause, seed
from tolaria_bus.tamiyo.history import History, loss_of
from tolaria_bus.tamiyo.seeds import ALIVE, lead

BLUEPRINTS: Final = {
    "conv2d": "residual_conv",
    "linear": "residual_mlp",
    "sequence": "residual_mlp",
}
"""What grows in a slot, by its kind."""
_NEVER: Final = math.inf


@dataclass(frozen=True, slots=True)
class Heuristic:
    """The shipped policy; its options.

    Attributes:
        patience: Epochs without a gain that are a plateau.
        gain: The share by which a loss has to be lower than the best to be a gain.
        unstable: The share by which a loss is over its best, twice in a row, for the rate to be
            lowered.
        diverged: How many times its best a loss must be, for ``patience`` epochs, for a pause.
        lr_factor: Of a lowered rate.
        lr_rest: Epochs between two changes of the rate.
        grow: Germinate seeds.
        seeds: Seeds under way at once, at most.
        seed_rest: Epochs between the last thing done to a seed and the next germination.
        growth: Parameters of all seeds, at most, as a share of those of the host.
        train_epochs: So long a seed learns on the side.
        trial_epochs: So long it is on trial.
        stage_patience: Epochs in one stage after which a seed has failed.
        harm: The share by which the loss may be higher than before a seed was blended in.
        memory: The share of the device's memory that has to be free; else ELEVATED is raised.

    Raises:
        ValueError: An option is out of range.
    """

    patience: int = 4
    gain: float = 0.005
    unstable: float = 0.2
    diverged: float = 4.0
    lr_factor: float = 0.5
    lr_rest: int = 3
    grow: bool = True
    seeds: int = 1
    seed_rest: int = 2
    growth: float = 1.0
    train_epochs: int = 2
    trial_epochs: int = 2
    stage_patience: int = 6
    harm: float = 0.05
    memory: float = 0.02

    def __post_init__(self) -> None:
        for name in ("patience", "lr_rest", "seeds", "seed_rest", "train_epochs", "trial_epochs"):
            if getattr(self, name) < (0 if name in ("seeds", "seed_rest") else 1):
                raise ValueError(f"{name} = {getattr(self, name)}: too small")
        if self.stage_patience <= max(self.train_epochs, self.trial_epochs):
            raise ValueError("stage_patience must be above train_epochs and trial_epochs")
        if not 0.0 < self.lr_factor < 1.0:
            raise ValueError(f"lr_factor = {self.lr_factor}: must be above 0 and below 1")
        if not self.diverged > 1.0:
            raise ValueError(f"diverged = {self.diverged}: must be above 1")
        for name in ("gain", "unstable", "growth", "harm", "memory"):
            if not 0.0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 or more")

    def __call__(self, packet: SystemStatePacket, history: History) -> AdaptationCommand | None:
        """What to do at the end of an epoch; see the module."""
        return (
            self._no_longer(packet, history)
            or self._unstable(packet, history)
            or self._lead(packet, history)
            or self._plateau(packet, history)
        )

    def _no_longer(self, packet: SystemStatePacket, history: History) -> AdaptationCommand | None:
        loss, best = loss_of(packet), history.best()
        gone = math.isnan(packet.validation_loss) and any(seen.validated for seen in history.past)
        if gone or (not math.isfinite(loss) and math.isfinite(best)):
            shown = packet.validation_loss
            return pause(f"the held-out loss is {shown:g}, it was {best:.4g}: somebody has to look")
        hardware = packet.hardware_context
        total, free = hardware.total_memory_gb, hardware.available_memory_gb
        if 0 < free < self.memory * total and _since(packet, "emergency") >= self.patience:
            level = EmergencyLevel.EMERGENCY_LEVEL_ELEVATED
            return emergency(level, f"{free:.2g} of {total:.3g} GiB of memory are free")
        last = [loss, *(seen.loss for seen in reversed(history.past))][: self.patience]
        if len(last) == self.patience and all(value > self.diverged * best > 0 for value in last):
            return pause(
                f"the loss is over {self.diverged:g} times its best ({best:.4g}) for "
                f"{self.patience} epochs: somebody has to look"
            )
        return None

    def _unstable(self, packet: SystemStatePacket, history: History) -> AdaptationCommand | None:
        best = history.best()
        if not history.past or not math.isfinite(best):
            return None
        bound = best + self.unstable * abs(best)
        rises = loss_of(packet) > bound and history.past[-1].loss > bound
        # What a seed brings about is the seed's to answer for.
        blended = any(
            seed.stage
            in (
                Stage.SEED_STAGE_BLENDING,
                Stage.SEED_STAGE_SHADOWING,
                Stage.SEED_STAGE_PROBATIONARY,
            )
            for seed in packet.seed_states
        )
        if rises and not blended and _since(packet, "learning_rate") >= self.lr_rest:
            return learning_rate(
                self.lr_factor, f"the loss is {loss_of(packet):.4g}, its best was {best:.4g}"
            )
        return None

    def _lead(self, packet: SystemStatePacket, history: History) -> AdaptationCommand | None:
        for found in packet.seed_states:
            if found.stage in ALIVE:
                command = lead(
                    found,
                    packet,
                    history,
                    train_epochs=self.train_epochs,
                    trial_epochs=self.trial_epochs,
                    patience=self.stage_patience,
                    harm=self.harm,
                    gain=self.gain,
                )
                if command is not None:
                    return command
        return None

    def _plateau(self, packet: SystemStatePacket, history: History) -> AdaptationCommand | None:
        without = history.epochs_without_gain(loss_of(packet), self.gain)
        if without < self.patience or not math.isfinite(loss_of(packet)):
            return None
        alive = sum(found.stage in ALIVE for found in packet.seed_states)
        why = f"no gain of {self.gain:.1%} for {without} epochs"
        free = [place for place in packet.slots if not place.seed_id and place.kind in BLUEPRINTS]
        rested = _since(packet, "seed") >= self.seed_rest
        grows = self.grow and packet.mode == "running" and _growth(packet) < self.growth
        if grows and free and rested and alive < self.seeds:
            return seed(
                Operation.SEED_OP_GERMINATE,
                f"e{packet.current_epoch}.t{packet.timeline}",
                why,
                blueprint=BLUEPRINTS[free[0].kind],
                slot=free[0].name,
            )
        if alive or not rested:
            return None  # What is under way may be the gain.
        if _since(packet, "learning_rate") >= max(self.lr_rest, self.patience):
            return learning_rate(self.lr_factor, why)
        return None


def _since(packet: SystemStatePacket, what: str) -> float:
    """Epochs since the last answer of a kind that was applied; infinite if there was none."""
    return packet.training_metrics.get(f"tamiyo.epochs_since.{what}", _NEVER)


def _growth(packet: SystemStatePacket) -> float:
    """Parameters of the seeds as a share of those of the host."""
    seeds = sum(found.parameter_count for found in packet.seed_states)
    host = packet.training_metrics.get("parameters", 0.0) - seeds
    return seeds / host if host > 0 else math.inf
