"""What a policy may remember of a run: its state at the ends of the last epochs, from its packets.

Nothing else: it is rebuilt from the state stream by whoever answers next, and is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SystemStatePacket

LENGTH: Final = 64
"""Epochs that are remembered."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A run at the end of one epoch.

    Attributes:
        timeline: Which one it was on.
        step: Optimizer steps done.
        epoch: Epochs done.
        loss: The held-out loss; where there is none, the training loss.
        validated: There was a held-out loss.
        rates: Learning rate by parameter group.
        seeds: Stage by seed.
    """

    timeline: int
    step: int
    epoch: int
    loss: float
    validated: bool
    rates: Mapping[str, float]
    seeds: Mapping[str, Stage.ValueType]

    @classmethod
    def of(cls, packet: SystemStatePacket) -> Seen:
        """What a packet says."""
        prefix = "learning_rate."
        return cls(
            timeline=packet.timeline,
            step=packet.global_step,
            epoch=packet.current_epoch,
            loss=loss_of(packet),
            validated=not math.isnan(packet.validation_loss),
            rates={
                name.removeprefix(prefix): rate
                for name, rate in packet.training_metrics.items()
                if name.startswith(prefix)
            },
            seeds={seed.seed_id: seed.stage for seed in packet.seed_states},
        )


@dataclass(frozen=True, slots=True)
class History:
    """The ends of a run's last epochs on its live timeline, oldest first; without the present."""

    past: tuple[Seen, ...] = ()

    def then(self, packet: SystemStatePacket) -> History:
        """The history once a packet is the past. What a rollback cut off is forgotten."""
        return History((*self.before(packet).past, Seen.of(packet))[-LENGTH:])

    def before(self, packet: SystemStatePacket) -> History:
        """The part of it that lies before a packet."""
        return History(
            tuple(
                seen
                for seen in self.past
                if seen.step < packet.global_step and seen.timeline <= packet.timeline
            )
        )

    def epochs_without_gain(self, loss: float, gain: float) -> int:
        """For how many epochs, the present one included, no loss was a gain on the best before it.

        Args:
            loss: The present one.
            gain: The share by which a loss has to be lower to be a gain.
        """
        best, without = math.inf, 0
        for now in (*(seen.loss for seen in self.past), loss):
            if now < best - gain * abs(best) if math.isfinite(best) else math.isfinite(now):
                best, without = now, 0
            else:
                without += 1
        return without

    def best(self) -> float:
        """The lowest loss; infinite if there is none."""
        return min((s.loss for s in self.past if math.isfinite(s.loss)), default=math.inf)

    def epochs_in_stage(self, seed_id: str, stage: Stage.ValueType) -> int:
        """At how many ends of epochs in a row, up to the last one, a seed was in a stage."""
        count = 0
        for seen in reversed(self.past):
            if seen.seeds.get(seed_id) != stage:
                break
            count += 1
        return count

    def loss_before_blending(self, seed_id: str) -> float | None:
        """The loss when a seed was last seen without a say in the output; ``None``: never."""
        quiet = (Stage.SEED_STAGE_GERMINATED, Stage.SEED_STAGE_TRAINING)
        for seen in reversed(self.past):
            if seen.seeds.get(seed_id) in quiet:
                return seen.loss
        return None


def loss_of(packet: SystemStatePacket) -> float:
    """The held-out loss of a packet; its training loss where nothing is held out."""
    return packet.training_loss if math.isnan(packet.validation_loss) else packet.validation_loss
