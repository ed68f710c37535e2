"""In which mode a run is: reading aids for Leyline's ``RunMode``, which is part of the state."""

from __future__ import annotations

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
