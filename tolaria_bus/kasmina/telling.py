"""A seed as Leyline tells it."""

from tolaria_bus.kasmina.blend import task_weight
from tolaria_bus.kasmina.records import SeedRecord
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedState


def seed_state(
    record: SeedRecord, step: int, epoch: int, *, depth: int, parameter_count: int
) -> SeedState:
    """Return the state of a seed.

    Its ``metrics``: ``alpha``, ``task_weight``; ``side_loss`` and ``side_steps`` once it has
    learned on the side; ``embargo_left``, in steps, while it is EMBARGOED. ``gradient_norm`` is
    that of its learning on the side, the exponential mean. ``learning_rate`` is for who knows it to
    fill in.
    """
    state = SeedState(
        seed_id=record.seed_id,
        stage=record.stage,
        layer_depth=depth,
        age_epochs=max(0, epoch - record.born_epoch),
        age_steps=max(0, step - record.born_step),
        slot=record.slot,
        blueprint_id=record.blueprint_id,
        parameter_count=parameter_count,
    )
    state.metrics["alpha"] = record.alpha
    state.metrics["task_weight"] = task_weight(
        record.stage, record.alpha, fine_tuning=record.fine_tuning
    )
    if record.health:
        steps, not_finite, norm, loss, *_ = record.health
        state.gradient_norm = norm
        state.metrics["side_steps"] = steps
        state.metrics["side_loss"] = loss
        # A share of broken steps is the one risk that is known before the gates.
        state.risk_score = not_finite / steps if steps else 0.0
    if record.stage == Stage.SEED_STAGE_EMBARGOED:
        state.metrics["embargo_left"] = max(0, record.since + record.embargo_steps - step)
    return state
