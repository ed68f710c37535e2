"""How seeds pass from stage to stage: by an operation, by themselves, or at the run's end.

What follows what is in :mod:`.lifecycle`; here it is done.
"""

import sys
from dataclasses import replace

from tolaria_bus.kasmina.blend import ramp
from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.folding import can_fold, fold
from tolaria_bus.kasmina.gates import GateReading, Limits
from tolaria_bus.kasmina.lifecycle import TRANSITIONS, operation_name, refuse
from tolaria_bus.kasmina.measuring import measure
from tolaria_bus.kasmina.operations import Moment
from tolaria_bus.kasmina.places import Place
from tolaria_bus.kasmina.planting import Planting
from tolaria_bus.kasmina.records import OperationPlan, SeedRecord, Transition
from tolaria_bus.kasmina.seeds import Seeds
from tolaria_bus.kasmina.side import Health
from tolaria_bus.leyline import SeedLifecycleStage as Stage
from tolaria_bus.leyline import SeedOperation as Operation

NEVER = sys.maxsize


def check(seeds: Seeds, seed_id: str, operation: Operation.ValueType) -> None:
    """Raise if an operation is not legal for a seed now; no gate is looked at.

    Raises:
        SeedRefused: ``unknown_seed``, ``illegal_transition`` or ``unsupported_operation``.
    """
    if operation not in Operation.values() or operation == Operation.SEED_OP_UNKNOWN:
        names = ", ".join(operation_name(known) for known in Operation.values()[1:])
        raise SeedRefused(
            "unsupported_operation", f"operation is {operation_name(operation)}; allowed: {names}"
        )
    if seed_id not in seeds.ids() and operation != Operation.SEED_OP_GERMINATE:
        known = ", ".join(seeds.ids()) or "none, as no seed has been germinated"
        raise SeedRefused("unknown_seed", f"target_seed_id is {seed_id!r}; allowed: {known}")
    why = refuse(seeds.stage(seed_id), operation)
    if why is not None:
        raise SeedRefused("illegal_transition", f"seed {seed_id!r}: {why}")


def operate(
    seeds: Seeds, planting: Planting, plan: OperationPlan, moment: Moment, limits: Limits
) -> Transition:
    """Measure the gate on the way of an operation that is legal, then do it.

    Raises:
        SeedRefused: ``gate_failed``, with its reading; nothing has changed.
    """
    record = seeds[plan.seed_id]
    after = TRANSITIONS[record.stage][plan.operation]
    place, health = planting.places.at(record.slot), seeds.health.get(plan.seed_id)
    reading = measure(plan.operation, record, place, health, moment, limits)
    if reading is not None:
        reading.require()
    changed = replace(record, stage=after, since=moment.step)
    match plan.operation:
        case Operation.SEED_OP_START_TRAINING:
            seeds.health[plan.seed_id] = Health(device=planting.device)
        case Operation.SEED_OP_START_GRAFTING:
            steps = int(plan.values["blend_steps"])
            changed = replace(
                changed, blend_steps=steps, alpha=ramp(1, steps), loss_before=moment.loss
            )
        case Operation.SEED_OP_FINE_TUNE:
            changed = replace(record, fine_tuning=True)
        case Operation.SEED_OP_FOSSILIZE:
            changed = replace(
                changed, folded=bool(plan.values["fold"]) and _folded(planting, place)
            )
        case Operation.SEED_OP_CULL:
            embargo = int(plan.values["embargo_steps"])
            changed = replace(changed, alpha=0.0, embargo_steps=embargo)
    removed = () if changed.grows else planting.uproot(record)
    if after == Stage.SEED_STAGE_DORMANT:
        reading = planting.left(record).require()
    seeds.settle(changed)
    return Transition(plan.seed_id, record.stage, after, reading, removed, changed.folded)


def advance(seeds: Seeds, planting: Planting, step: int) -> tuple[Transition, ...]:
    """Do what time brings, once ``step`` steps are done and before the next one is made.

    Returns:
        The changes of stage, in order.
    """
    passed: list[Transition] = []
    for record in seeds:
        if record.stage == Stage.SEED_STAGE_BLENDING:
            alpha = ramp(step + 1 - record.since, record.blend_steps)
            seeds.settle(replace(record, alpha=alpha))
        if record.stage == Stage.SEED_STAGE_CULLED:
            record = _pass(seeds, record, Stage.SEED_STAGE_EMBARGOED, None, passed)
        ended = step + 1 >= record.since + record.embargo_steps
        if record.stage == Stage.SEED_STAGE_EMBARGOED and ended:
            left = planting.left(record)
            record = _pass(seeds, record, Stage.SEED_STAGE_RESETTING, left, passed)
        if record.stage == Stage.SEED_STAGE_RESETTING:
            left = planting.left(record)
            if left.passed:
                _pass(seeds, record, Stage.SEED_STAGE_DORMANT, left, passed)
    return tuple(passed)


def due(seeds: Seeds) -> int:
    """Return once how many steps are done ``advance`` has something to do."""
    return min((_due(seed) for seed in seeds), default=NEVER)


def terminate(seeds: Seeds) -> tuple[Transition, ...]:
    """Let FOSSILIZED seeds, a part of the host for good, be TERMINATED.

    Returns:
        The changes of stage, in order.
    """
    passed: list[Transition] = []
    for record in seeds:
        if record.stage == Stage.SEED_STAGE_FOSSILIZED:
            _pass(seeds, record, Stage.SEED_STAGE_TERMINATED, None, passed)
    return tuple(passed)


def _folded(planting: Planting, place: Place) -> bool:
    """Fold a seed into its host's layer, where that can be done."""
    if place.host is None or place.seed is None:
        return False
    if not can_fold(planting.model, place.host, place.seed):
        return False
    fold(place.host, place.seed)
    return True


def _pass(
    seeds: Seeds,
    record: SeedRecord,
    after: Stage.ValueType,
    reading: GateReading | None,
    passed: list[Transition],
) -> SeedRecord:
    passed.append(Transition(record.seed_id, record.stage, after, reading))
    changed = replace(record, stage=after)
    seeds.settle(changed)
    return changed


def _due(seed: SeedRecord) -> int:
    if seed.stage == Stage.SEED_STAGE_BLENDING:
        return NEVER if seed.alpha == 1.0 else 0
    if seed.stage == Stage.SEED_STAGE_EMBARGOED:
        return seed.since + seed.embargo_steps - 1
    awaits = {Stage.SEED_STAGE_CULLED, Stage.SEED_STAGE_RESETTING}
    return 0 if seed.stage in awaits else NEVER
