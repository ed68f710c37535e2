"""The life of a seed: its stages, which operation leads where, and what guards each way.

    DORMANT ─germinate─▶ GERMINATED ─start-training─▶ TRAINING ─start-grafting─▶ BLENDING
      ─stabilize─▶ SHADOWING ─evaluate─▶ PROBATIONARY ─fossilize─▶ FOSSILIZED

The seed touches the host's output from BLENDING on. *Cancel* gives up a seed that has not touched
it: its slot is DORMANT again at once. *Cull* removes a seed that has failed: CULLED, then, by
themselves, EMBARGOED (its slot stays empty for a while), RESETTING, DORMANT. A FOSSILIZED seed is a
part of the host; it is TERMINATED when the run ends.
"""

from collections.abc import Mapping

from tolaria_bus.leyline import SeedLifecycleGate as Gate
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedOperation as Operation

TRANSITIONS: Mapping[Stage.ValueType, Mapping[Operation.ValueType, Stage.ValueType]] = {
    Stage.SEED_STAGE_DORMANT: {
        Operation.SEED_OP_GERMINATE: Stage.SEED_STAGE_GERMINATED,
    },
    Stage.SEED_STAGE_GERMINATED: {
        Operation.SEED_OP_START_TRAINING: Stage.SEED_STAGE_TRAINING,
        Operation.SEED_OP_CULL: Stage.SEED_STAGE_CULLED,
        Operation.SEED_OP_CANCEL: Stage.SEED_STAGE_DORMANT,
    },
    Stage.SEED_STAGE_TRAINING: {
        Operation.SEED_OP_START_GRAFTING: Stage.SEED_STAGE_BLENDING,
        Operation.SEED_OP_CULL: Stage.SEED_STAGE_CULLED,
        Operation.SEED_OP_CANCEL: Stage.SEED_STAGE_DORMANT,
    },
    Stage.SEED_STAGE_BLENDING: {
        Operation.SEED_OP_STABILIZE: Stage.SEED_STAGE_SHADOWING,
        Operation.SEED_OP_CULL: Stage.SEED_STAGE_CULLED,
    },
    Stage.SEED_STAGE_SHADOWING: {
        Operation.SEED_OP_EVALUATE: Stage.SEED_STAGE_PROBATIONARY,
        Operation.SEED_OP_CULL: Stage.SEED_STAGE_CULLED,
    },
    Stage.SEED_STAGE_PROBATIONARY: {
        # Fine-tuning is a way of training within the stage, not a stage.
        Operation.SEED_OP_FINE_TUNE: Stage.SEED_STAGE_PROBATIONARY,
        Operation.SEED_OP_FOSSILIZE: Stage.SEED_STAGE_FOSSILIZED,
        Operation.SEED_OP_CULL: Stage.SEED_STAGE_CULLED,
    },
    Stage.SEED_STAGE_FOSSILIZED: {},
    Stage.SEED_STAGE_CULLED: {},
    Stage.SEED_STAGE_EMBARGOED: {},
    Stage.SEED_STAGE_RESETTING: {},
    Stage.SEED_STAGE_TERMINATED: {},
}

TASKS = frozenset(
    {
        Stage.SEED_STAGE_BLENDING,
        Stage.SEED_STAGE_SHADOWING,
        Stage.SEED_STAGE_PROBATIONARY,
    }
)
"""Stages in which a seed is in the output and not the host's yet: a task of its own."""

# What follows without an operation.
AUTOMATIC: Mapping[Stage.ValueType, Stage.ValueType] = {
    Stage.SEED_STAGE_CULLED: Stage.SEED_STAGE_EMBARGOED,
    Stage.SEED_STAGE_EMBARGOED: Stage.SEED_STAGE_RESETTING,
    Stage.SEED_STAGE_RESETTING: Stage.SEED_STAGE_DORMANT,
    Stage.SEED_STAGE_FOSSILIZED: Stage.SEED_STAGE_TERMINATED,
}

# What must hold for a stage to be entered.
GATES: Mapping[Stage.ValueType, Gate.ValueType] = {
    Stage.SEED_STAGE_GERMINATED: Gate.SEED_GATE_G0_SANITY,
    Stage.SEED_STAGE_BLENDING: Gate.SEED_GATE_G1_GRADIENT_HEALTH,
    Stage.SEED_STAGE_SHADOWING: Gate.SEED_GATE_G2_STABILITY,
    Stage.SEED_STAGE_PROBATIONARY: Gate.SEED_GATE_G3_INTERFACE,
    Stage.SEED_STAGE_FOSSILIZED: Gate.SEED_GATE_G4_SYSTEM_IMPACT,
    Stage.SEED_STAGE_DORMANT: Gate.SEED_GATE_G5_RESET,
}


def refuse(stage: Stage.ValueType, operation: Operation.ValueType) -> str | None:
    """Return why ``operation`` is not legal in ``stage``, naming what would be; None if it is."""
    legal = TRANSITIONS.get(stage, {})
    if operation in legal:
        return None
    names = ", ".join(operation_name(known) for known in legal) or "nothing"
    return (
        f"{operation_name(operation)} is not legal in the stage {stage_name(stage)}; "
        f"legal is: {names}"
    )


def stage_name(stage: Stage.ValueType) -> str:
    """Return ``GERMINATED`` for ``SEED_STAGE_GERMINATED``; a number that has no name as it is."""
    known = stage in Stage.values()
    return Stage.Name(stage).removeprefix("SEED_STAGE_") if known else str(int(stage))


def operation_name(operation: Operation.ValueType) -> str:
    """Return ``CULL`` for ``SEED_OP_CULL``; a number that has no name as it is."""
    known = operation in Operation.values()
    return Operation.Name(operation).removeprefix("SEED_OP_") if known else str(int(operation))
