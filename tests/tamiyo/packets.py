"""State packets and histories, in a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedState, SlotState, SystemStatePacket
from tolaria_bus.tamiyo.history import History

STEPS = 50
"""Of an epoch."""


def seed(
    stage: str, name: str = "s", *, alpha: float = 0.0, risk: float = 0.0, parameters: int = 10
) -> SeedState:
    found = SeedState(
        seed_id=name,
        stage=Stage.Value(f"SEED_STAGE_{stage}"),
        risk_score=risk,
        parameter_count=parameters,
    )
    found.metrics["alpha"] = alpha
    return found


def packet(
    epoch: int,
    loss: float,
    *seeds: SeedState,
    timeline: int = 1,
    mode: str = "running",
    kind: str = "linear",
    rate: float = 0.1,
    free_memory: float = 8.0,
    run: str = "r",
    **since: float,
) -> SystemStatePacket:
    """Of the end of an epoch; ``since``: epochs since Tamiyo's last command of a kind."""
    made = SystemStatePacket(
        version=1,
        current_epoch=epoch,
        global_step=epoch * STEPS,
        validation_loss=loss,
        training_loss=loss,
        packet_id=f"{run}.t{timeline}.s{epoch * STEPS}",
        training_run_id=run,
        timeline=timeline,
        mode=mode,
        seed_states=seeds,
        slots=[SlotState(name="slot", kind=kind, features=8)] if kind else [],
    )
    if seeds and made.slots and any(one.stage not in _LEFT for one in seeds):
        made.slots[0].seed_id = seeds[0].seed_id
    made.hardware_context.total_memory_gb = 16.0
    made.hardware_context.available_memory_gb = free_memory
    made.training_metrics["learning_rate.host"] = rate
    made.training_metrics["parameters"] = 1000.0
    made.training_metrics["steps_per_epoch"] = float(STEPS)
    made.training_metrics["tamiyo.interventions"] = since.pop("interventions", 0.0)
    for what, epochs in since.items():
        made.training_metrics[f"tamiyo.epochs_since.{what}"] = epochs
    return made


_LEFT = frozenset({Stage.SEED_STAGE_DORMANT, Stage.SEED_STAGE_TERMINATED})


def history(losses: Sequence[float], stages: Mapping[int, str] | None = None) -> History:
    """Of losses, one an epoch from the first on; ``stages``: that of the seed ``s`` by epoch."""
    made, stages = History(), stages or {}
    for epoch, loss in enumerate(losses, start=1):
        seeds = [seed(stages[epoch])] if epoch in stages else []
        made = made.then(packet(epoch, loss, *seeds))
    return made
