"""Leading one seed through its life, a stage at a time: what is next, and when it has failed.

The run's own gates judge each step (G1 to G5). Here it is decided when to try one, and when to give
up: a gate that has refused for as many epochs as there is patience, or a loss that got worse.
"""

from __future__ import annotations

from typing import Final

from tolaria_bus.leyline import AdaptationCommand, SeedState, SystemStatePacket
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedOperation as Operation
from tolaria_bus.tamiyo.advice import seed as about
from tolaria_bus.tamiyo.history import History, loss_of

ALIVE: Final = frozenset(
    {
        Stage.SEED_STAGE_GERMINATED,
        Stage.SEED_STAGE_TRAINING,
        Stage.SEED_STAGE_BLENDING,
        Stage.SEED_STAGE_SHADOWING,
        Stage.SEED_STAGE_PROBATIONARY,
    }
)
"""Seeds that aren't decided yet."""

_NEXT: Final = {
    Stage.SEED_STAGE_GERMINATED: Operation.SEED_OP_START_TRAINING,
    Stage.SEED_STAGE_TRAINING: Operation.SEED_OP_START_GRAFTING,
    Stage.SEED_STAGE_BLENDING: Operation.SEED_OP_STABILIZE,
    Stage.SEED_STAGE_SHADOWING: Operation.SEED_OP_EVALUATE,
    Stage.SEED_STAGE_PROBATIONARY: Operation.SEED_OP_FOSSILIZE,
}
_GROWS: Final = frozenset(
    {
        Operation.SEED_OP_START_TRAINING,
        Operation.SEED_OP_START_GRAFTING,
        Operation.SEED_OP_FOSSILIZE,
    }
)
"""What conservative mode refuses."""


def lead(
    seed: SeedState,
    packet: SystemStatePacket,
    history: History,
    *,
    train_epochs: int,
    trial_epochs: int,
    patience: int,
    harm: float,
    gain: float,
) -> AdaptationCommand | None:
    """What to do with a seed now; ``None``: let it be.

    Args:
        seed: One that is ALIVE.
        packet: Of its run.
        history: Likewise.
        train_epochs: So long it learns on the side before it is grafted.
        trial_epochs: So long it is on trial before it is judged.
        patience: Epochs in one stage after which it has failed.
        harm: The share by which the held-out loss may be higher than before it was blended in.
        gain: The share by which it must be lower for the seed to be worth its parameters.
    """
    stage, name = seed.stage, seed.seed_id
    # The present end of an epoch counts.
    age = history.epochs_in_stage(name, stage) + 1
    if seed.risk_score > 0:
        return _cull(packet, name, f"its gradients aren't finite in {seed.risk_score:.0%} of steps")
    before = history.loss_before_blending(name)
    blended = stage not in (Stage.SEED_STAGE_GERMINATED, Stage.SEED_STAGE_TRAINING)
    change = _change(before, loss_of(packet)) if blended and before is not None else 0.0
    if change > harm:
        return _cull(packet, name, f"the loss is {change:.2%} higher than before it was blended in")
    operation = _NEXT[stage]
    conservative = packet.mode == "conservative"
    if conservative and operation in _GROWS:
        return None
    if age > patience:
        return _cull(packet, name, f"{age - 1} epochs in {Stage.Name(stage)[11:].lower()}")
    if stage == Stage.SEED_STAGE_TRAINING and age <= train_epochs:
        return None
    if stage == Stage.SEED_STAGE_BLENDING and seed.metrics.get("alpha", 0.0) < 1.0:
        return None
    if stage == Stage.SEED_STAGE_PROBATIONARY:
        if age <= trial_epochs:
            return None
        if change > -gain:
            return _cull(
                packet, name, f"a trial of {age - 1} epochs changed the loss {change:+.2%}"
            )
        return about(operation, name, f"the loss is {-change:.2%} lower with it")
    values = None
    if operation == Operation.SEED_OP_START_GRAFTING:
        values = {"blend_steps": _epoch(packet)}
    return about(operation, name, f"{age} epochs in its stage", values=values)


def _cull(packet: SystemStatePacket, name: str, why: str) -> AdaptationCommand:
    values = {"embargo_steps": _epoch(packet)}
    return about(Operation.SEED_OP_CULL, name, why, values=values)


def _epoch(packet: SystemStatePacket) -> float:
    """Optimizer steps of an epoch; 100 where the run doesn't say."""
    return max(1.0, packet.training_metrics.get("steps_per_epoch", 100.0))


def _change(before: float, now: float) -> float:
    return (now - before) / max(abs(before), 1e-12)
