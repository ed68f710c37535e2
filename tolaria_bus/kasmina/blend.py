"""How much a seed counts: its share (alpha) of a slot's output, and its weight in the gradient.

Both are pure functions of what is written down of the seed and of the step.
"""

import math

from tolaria_bus.leyline import SeedLifecycleStage as Stage

# Steepness of the ramp: it does half of its way in the middle quarter of the steps.
_STEEPNESS = 8.0


def ramp(done: int, steps: int) -> float:
    """The share alpha after ``done`` of ``steps`` steps of blending.

    A logistic curve, moved and stretched so that it begins at exactly 0 and ends at exactly 1:
    alpha(p) = (S(k(p - 1/2)) - S(-k/2)) / (S(k/2) - S(-k/2)), p = done/steps, k = 8,
    with S(x) = 1 / (1 + exp(-x)).
    """
    if done <= 0:
        return 0.0
    if done >= steps:
        return 1.0
    low = _logistic(-_STEEPNESS / 2)
    return (_logistic(_STEEPNESS * (done / steps - 0.5)) - low) / (1.0 - 2.0 * low)


def task_weight(stage: Stage.ValueType, alpha: float, *, fine_tuning: bool = False) -> float:
    """The weight of a seed's task beside the host's, which is 1.

    DORMANT 0, GERMINATED 0.01, BLENDING alpha, SHADOWING and PROBATIONARY 0.5, fine-tuning 1; all
    others 0: a TRAINING seed learns by itself, on the side, and a FOSSILIZED one is the host's.
    """
    if stage == Stage.SEED_STAGE_GERMINATED:
        return 0.01
    if stage == Stage.SEED_STAGE_BLENDING:
        return alpha
    if stage == Stage.SEED_STAGE_PROBATIONARY and fine_tuning:
        return 1.0
    if stage in {Stage.SEED_STAGE_SHADOWING, Stage.SEED_STAGE_PROBATIONARY}:
        return 0.5
    return 0.0


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))
