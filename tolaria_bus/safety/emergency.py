"""The four levels of an emergency: what raises a run to each, and what lets it fall again.

Pure: a run's standing is Leyline's ``EmergencyState``, and each function returns a new one.

=======================  ==============================================  ==========================
cause                    what it is                                      level, by how often it came
=======================  ==============================================  ==========================
``fallback``             compile or AMP failed and is off                NOTICE
``seed_failed``          a seed's side training failed, it is culled     NOTICE; 3: ELEVATED
``checkpoint_failed``    a checkpoint could not be written               NOTICE; 3: ELEVATED
``breaker_opened``       a breaker opened                                NOTICE; 3: ELEVATED
``boundary_slow``        the breaker ``timing`` opened                   ELEVATED
``journal_unwritable``   commands wait because the journal can't         ELEVATED
                         be written
``loss_spike``           a loss over 15 times its mean: rollback         ELEVATED; 2: CONSERVATIVE
``loss_not_finite``      a loss that is no number: rollback              ELEVATED; 2: CONSERVATIVE
``accuracy_collapsed``   the accuracy fell to half its best: rollback    ELEVATED; 2: CONSERVATIVE
``rollback_failed``      rollbacks in a row that didn't help             HALT
=======================  ==============================================  ==========================

A second cause that alone would mean the level that the run is at already lifts it one level, but
never to HALT: two troubles at once are worse than either. Counts are forgotten when the level is
none again. A clean stretch of steps lowers it by one level; HALT ends by a RESUME alone, which
leaves CONSERVATIVE.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Final, TypeAlias

from tolaria_bus.leyline import EmergencyLevel, EmergencyState
from tolaria_bus.leyline.codec import short_name

Level: TypeAlias = EmergencyLevel.ValueType

NONE: Final = EmergencyLevel.EMERGENCY_LEVEL_UNSPECIFIED
NOTICE: Final = EmergencyLevel.EMERGENCY_LEVEL_NOTICE
ELEVATED: Final = EmergencyLevel.EMERGENCY_LEVEL_ELEVATED
CONSERVATIVE: Final = EmergencyLevel.EMERGENCY_LEVEL_CONSERVATIVE
HALT: Final = EmergencyLevel.EMERGENCY_LEVEL_HALT

FALLBACK: Final = "fallback"
SEED_FAILED: Final = "seed_failed"
CHECKPOINT_FAILED: Final = "checkpoint_failed"
BREAKER_OPENED: Final = "breaker_opened"
BOUNDARY_SLOW: Final = "boundary_slow"
JOURNAL_UNWRITABLE: Final = "journal_unwritable"
LOSS_SPIKE: Final = "loss_spike"
LOSS_NOT_FINITE: Final = "loss_not_finite"
ACCURACY_COLLAPSED: Final = "accuracy_collapsed"
ROLLBACK_FAILED: Final = "rollback_failed"

_MINOR: Final[Mapping[int, Level]] = {1: NOTICE}
_RISING: Final[Mapping[int, Level]] = {1: NOTICE, 3: ELEVATED}
_SERIOUS: Final[Mapping[int, Level]] = {1: ELEVATED}
_WENT_BACK: Final[Mapping[int, Level]] = {1: ELEVATED, 2: CONSERVATIVE}

CAUSES: Final[Mapping[str, Mapping[int, Level]]] = {
    FALLBACK: _MINOR,
    SEED_FAILED: _RISING,
    CHECKPOINT_FAILED: _RISING,
    BREAKER_OPENED: _RISING,
    BOUNDARY_SLOW: _SERIOUS,
    JOURNAL_UNWRITABLE: _SERIOUS,
    LOSS_SPIKE: _WENT_BACK,
    LOSS_NOT_FINITE: _WENT_BACK,
    ACCURACY_COLLAPSED: _WENT_BACK,
    ROLLBACK_FAILED: {1: HALT},
}
"""By cause: from how many occurrences on it means which level."""

LIMITS: Final[Mapping[int, timedelta]] = {
    HALT: timedelta(milliseconds=100),
    CONSERVATIVE: timedelta(milliseconds=500),
    ELEVATED: timedelta(seconds=2),
    NOTICE: timedelta(seconds=5),
}
"""From a cause to its signal's being on the emergency stream, and to the trainer's seeing it."""

NEVER: Final = sys.maxsize
_OWN: Final = "tolaria"
_COUNTED: Final = 1_000_000


def worsened(state: EmergencyState, cause: str, *, step: int, reason: str) -> EmergencyState:
    """The standing after one more occurrence of a cause of the trainer's own.

    Args:
        state: The standing before.
        cause: One of :data:`CAUSES`.
        step: Optimizer steps done.
        reason: For people.

    Raises:
        KeyError: There is no such cause.
    """
    table = CAUSES[cause]
    after = _copy(state)
    another = cause not in state.counts
    count = after.counts[cause] = min(after.counts[cause] + 1, _COUNTED)
    after.last_step = max(state.last_step, step)
    means = max(level for times, level in table.items() if times <= count)
    level = means
    if another and means == state.level and means < CONSERVATIVE:
        level = _next(means)
    return _risen(after, state, level, step=step, cause=cause, reason=reason, by=_OWN)


def raised(
    state: EmergencyState, level: Level, *, step: int, cause: str, reason: str, by: str
) -> EmergencyState:
    """The standing after somebody's word: a command's, a signal's. A lower level changes nothing.

    Args:
        state: The standing before.
        level: That was asked for.
        step: Optimizer steps done.
        cause: ``command`` or ``signal``, or one of :data:`CAUSES`.
        reason: For people.
        by: Whose word it is.
    """
    after = _copy(state)
    after.last_step = max(state.last_step, step)
    return _risen(after, state, level, step=step, cause=cause, reason=reason, by=by)


def eased(state: EmergencyState, *, step: int, clean_steps: int) -> EmergencyState | None:
    """The standing after a clean stretch: one level lower; ``None`` if there was none yet.

    Args:
        state: The standing before.
        step: Optimizer steps done.
        clean_steps: How long a stretch must be.
    """
    if step < easing_step(state, clean_steps):
        return None
    lower = EmergencyLevel.ValueType(state.level - 1)
    if lower == NONE:
        return EmergencyState()
    return _fallen(state, lower, step)


def easing_step(state: EmergencyState, clean_steps: int) -> int:
    """At which step the level falls if nothing happens; :data:`NEVER` for none and for HALT."""
    if state.level in (NONE, HALT):
        return NEVER
    return state.last_step + clean_steps


def resumed(state: EmergencyState, *, step: int, conservative: bool) -> EmergencyState:
    """The standing after a RESUME: HALT becomes CONSERVATIVE, or less where that mode is left.

    Args:
        state: The standing before; anything but HALT stays as it is.
        step: Optimizer steps done.
        conservative: The run is in conservative mode.
    """
    if state.level != HALT:
        return _copy(state)
    return _fallen(state, CONSERVATIVE if conservative else ELEVATED, step)


def released(state: EmergencyState, *, step: int) -> EmergencyState:
    """The standing after somebody has taken conservative mode into their own hands, on or off.

    HALT stays; CONSERVATIVE, which is that mode, becomes ELEVATED.
    """
    after = _fallen(state, ELEVATED, step) if state.level == CONSERVATIVE else _copy(state)
    after.conservative = False
    return after


def level_name(level: int) -> str:
    """``none``, ``notice``, ``elevated``, ``conservative`` or ``halt``."""
    return short_name(EmergencyLevel, level).lower() if level else "none"


def _risen(
    after: EmergencyState,
    before: EmergencyState,
    level: Level,
    *,
    step: int,
    cause: str,
    reason: str,
    by: str,
) -> EmergencyState:
    if level > before.level:
        after.level, after.cause, after.reason, after.by = level, cause, reason, by
        after.since_step = step
    return after


def _fallen(state: EmergencyState, level: Level, step: int) -> EmergencyState:
    after = _copy(state)
    after.level, after.since_step = level, step
    # A stretch of its own for each level.
    after.last_step = max(state.last_step, step)
    return after


def _next(level: Level) -> Level:
    return EmergencyLevel.ValueType(level + 1)


def _copy(state: EmergencyState) -> EmergencyState:
    after = EmergencyState()
    after.CopyFrom(state)
    return after
