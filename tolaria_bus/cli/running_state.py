"""What a run's status means: at work, held, hanging, silent, dead, or at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tolaria_bus.cli.amounts import duration

SILENT_SECONDS: Final = 10.0
"""A status is rewritten each second; one that is so old has lost its writer."""
_HELD: Final = frozenset({"paused", "halted"})
_GOOD_ENDS: Final = {
    "finished": ("finished", "it came to its end"),
    "command": ("stopped", "by a command"),
    "signal": ("stopped", "by a signal"),
    "lease": ("taken over", "another worker has the run"),
}


@dataclass(frozen=True, slots=True)
class State:
    """How a run is.

    Attributes:
        name: ``starting``, ``running``, ``conservative``, ``paused``, ``halted``, ``hung``,
            ``silent``, ``dead``, ``finished``, ``stopped``, ``taken over``, ``failed``,
            ``unknown``.
        why: In words, where the name doesn't say it all; else empty.
        age: Seconds since its worker was last heard of; ``None``: never.
        bad: Somebody should look after it.
    """

    name: str
    why: str = ""
    age: float | None = None
    bad: bool = False


def judge(told: Mapping[str, Any], *, now: float, lease_held: bool) -> State:
    """Tell how a run is.

    Args:
        told: Its status, as its worker wrote it last.
        now: The server's time, in seconds since the epoch.
        lease_held: Somebody has the run, by what the server says.
    """
    beat = _number(told.get("beat_server")) or _number(told.get("beat"))
    if not told and lease_held:
        return State("starting", "its worker has yet to tell how it is")
    if beat is None:
        return State("unknown", "its worker never told how it is", None, bad=not lease_held)
    age = max(now - beat, 0.0)
    ended = told.get("ended")
    if isinstance(ended, Mapping):
        how = str(ended.get("how"))
        if how in _GOOD_ENDS:
            name, why = _GOOD_ENDS[how]
            return State(name, why, age)
        return State("failed", str(ended.get("reason", "")), age, bad=True)
    if age > SILENT_SECONDS:
        silence = f"nothing was heard of it for {duration(age)}"
        if lease_held:
            return State("silent", f"{silence}; it still has its lease", age, bad=True)
        return State("dead", f"{silence}, and nobody holds the run", age, bad=True)
    mode = str(told.get("mode", "running"))
    quiet, limit = _number(told.get("quiet")), _number(told.get("quiet_limit"))
    if mode not in _HELD and quiet is not None and limit is not None and quiet > limit:
        why = f"training hasn't got on for {duration(quiet)} (limit {duration(limit)})"
        return State("hung", why, age, bad=True)
    return State(mode, "", age)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
