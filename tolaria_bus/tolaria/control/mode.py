"""In which mode a run is: reading aids for Leyline's ``RunMode``, which is part of the state."""

from __future__ import annotations

import time

from tolaria_bus.leyline import RunMode


def held(mode: RunMode) -> bool:
    """True while no step is to be made: paused, or halted by an emergency."""
    return mode.paused or mode.halted


def mode_name(mode: RunMode) -> str:
    """One word for people: ``halted``, ``paused``, ``conservative`` or ``running``."""
    if mode.halted:
        return "halted"
    if mode.paused:
        return "paused"
    return "conservative" if mode.conservative else "running"


def note_mode(mode: RunMode, step: int, *, anew: bool = False) -> None:
    """Write down who asked for what is on, why, and since when; idempotent.

    To be called after each change: ``reason`` and ``by`` are of the newest one alone, which may be
    another thing's.

    Args:
        mode: Has just been changed, or not.
        step: At which.
        anew: Conservative mode was asked for once more: by whom counts.
    """
    now = time.time_ns()
    notes = (
        (mode.conservative, "conservative_note", anew),
        (held(mode), "held_note", False),
    )
    for on, name, again in notes:
        if not on:
            mode.ClearField(name)  # type: ignore[arg-type]
        elif again or not mode.HasField(name):  # type: ignore[arg-type]
            note = getattr(mode, name)
            note.Clear()
            note.reason, note.by = mode.reason, mode.by
            note.since_step, note.since_ns = step, now
