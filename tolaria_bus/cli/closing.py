"""The table at the end of a run."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tolaria_bus.cli.style import clean
from tolaria_bus.tolaria.summary import RunSummary

if TYPE_CHECKING:
    from tolaria_bus.tolaria.replay import ReplaySummary

_WHY = {
    "finished": "its end",
    "command": "a command",
    "signal": "a signal",
    "lease": "another worker, which has the run now",
    "replayed": "the end of the journal",
}


def rows(summary: RunSummary) -> list[tuple[str, str]]:
    """What is worth saying of a run that has ended: name and value, for people."""
    speed = f"{summary.steps_per_second:.0f} steps/s" if summary.steps_per_second else ""
    told = [
        ("run", summary.run),
        ("stopped by", _WHY.get(summary.stopped_by, summary.stopped_by)),
        ("steps", f"{summary.steps} in {summary.epochs} epochs"),
        ("time", f"{summary.seconds:.1f} s" + (f", {speed}" if speed else "")),
        ("held-out loss", "" if summary.loss is None else f"{summary.loss:.4f}"),
        ("held-out accuracy", "" if summary.accuracy is None else f"{summary.accuracy:.2%}"),
        ("commands applied", str(summary.commands_applied)),
        ("timeline", str(summary.timeline) if summary.timeline > 1 else ""),
        ("mode", summary.mode if summary.mode != "running" else ""),
        ("resumed from", summary.resumed_from),
        ("exact", "" if summary.exact else "no: resumed under another torch, device or threads"),
        ("weights", f"sha256 {summary.weights_sha256}"),
        ("checkpoint", summary.checkpoint),
        ("folder", summary.folder),
    ]
    return [(name, value) for name, value in told if value]


def go_on(summary: RunSummary) -> str:
    """The words that continue a run which was stopped; empty for one at its end."""
    if summary.stopped_by not in ("command", "signal"):
        return ""
    return f"to go on: tolaria-bus run {shlex.quote(summary.job)} --run {summary.run}"


def replay_rows(summary: ReplaySummary, *, kept: bool) -> list[tuple[str, str]]:
    """What is worth saying of a repeated run: name and value, for people."""
    hidden = set() if kept else {"checkpoint", "folder"}
    told = [(name, value) for name, value in rows(summary.run) if name not in hidden]
    verdicts = {
        True: "the same bits",
        False: f"OTHER BITS: sha256 {summary.recorded_sha256}",
        None: "unknown: the run hasn't stopped there in good order",
    }
    recorded = verdicts[summary.same_bits]
    return [*told, ("recorded", recorded), ("repeated", summary.source)]


def show(summary: RunSummary) -> None:
    """Print the table on standard output."""
    _print(rows(summary))
    if words := go_on(summary):
        print(words, file=sys.stderr)


def show_replay(summary: ReplaySummary, *, kept: bool) -> None:
    """Print the table of a repeated run; ``kept``: its folder stays."""
    _print(replay_rows(summary, kept=kept))


def _print(told: list[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in told:
        table.add_row(name, Text(clean(value)))
    console = Console(highlight=False)
    console.print()
    console.print(table)
