"""Which folder is a run's: by its path, by its id, or by that of a run that is live here."""

from __future__ import annotations

from pathlib import Path

from tolaria_bus.oona.running import find
from tolaria_bus.settings import Settings


class NoSuchRun(ValueError):
    """No folder of that run is here; one line naming where was looked."""


def run_folder(named: str, settings: Settings) -> Path:
    """The folder of a run, as given on a command line.

    Args:
        named: A folder, or a run's id.
        settings: ``runs_dir``, ``run_dir``.

    Raises:
        NoSuchRun: There is none.
    """
    path = Path(named).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.name != named:
        raise NoSuchRun(f"{named}: there is no such folder")
    places = [settings.runs_dir / named]
    if settings.run_dir is not None and settings.run == named:
        places.insert(0, settings.run_dir)
    for place in places:
        if place.expanduser().is_dir():
            return place.expanduser().resolve()
    found = _live(named)
    if found is not None:
        return found
    shown = ", ".join(str(place) for place in (path, *places))
    raise NoSuchRun(f"{named}: no run of this id, and no such folder (looked at {shown})")


def _live(run: str) -> Path | None:
    try:
        found = find(run=run)
    except ValueError:
        return None  # It can't be an id.
    return None if found is None else found.folder
