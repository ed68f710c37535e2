"""Which streams to follow for which runs, and whether an alert concerns a run."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from tolaria_bus.cli.render import Shown, run_shown
from tolaria_bus.leyline import EmergencySignal
from tolaria_bus.oona.streams import Streams

KINDS: Final = (
    "emergency",
    "telemetry",
    "outcomes",
    "state",
    "reports",
    "dead",
    "control",
)
"""Kinds of streams, as the options of ``tail`` name them."""
DEFAULT: Final = ("emergency", "outcomes")


def shared_streams(kinds: Iterable[str], streams: Streams) -> list[str]:
    """Keys of the streams that all runs share."""
    shared = {
        "emergency": [streams.emergency],
        "control": [streams.fleet_control],
        "dead": [
            streams.dead_letters_of(streams.fleet_control),
            streams.dead_letters_of(streams.emergency),
        ],
    }
    return [key for kind in kinds for key in shared.get(kind, [])]


def run_streams(kinds: Iterable[str], streams: Streams, run: str) -> list[str]:
    """Keys of one run's own streams."""
    own = {
        "telemetry": streams.telemetry,
        "outcomes": streams.outcomes,
        "state": streams.state,
        "reports": streams.reports,
        "dead": streams.dead,
        "control": streams.control,
    }
    return [own[kind](run) for kind in kinds if kind in own]


def concerns(shown: Shown, run: str) -> bool:
    """Tell whether an entry is about ``run``, or about no run in particular.

    Only what plainly belongs to another run is none of its business; what can't be read or isn't
    verified is shown, for nobody knows.
    """
    if shown.message is None or shown.verified is False:
        return True
    if isinstance(shown.message, EmergencySignal):
        scope = shown.message.attributes.get("scope", "self")
        if scope == "all":
            return True
        if scope == "pattern" and fnmatchcase(run, shown.message.attributes.get("runs", "")):
            return True
    return run_shown(shown) in (run, "-", "fleet")
