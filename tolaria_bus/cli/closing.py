"""The table at the end of a run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
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


def go_on(
    summary: RunSummary, job: str, assignments: Sequence[str], options: Mapping[str, object]
) -> str:
    """The words that continue a run which was stopped; empty for one at its end.

    Args:
        summary: Of the run.
        job: As it was given: what the job calls itself isn't where it is.
        assignments: ``name=value`` words of ``--set``.
        options: Settings that were given by an option of their own. A server's URL is left out: it
            may have a password.
    """
    if summary.stopped_by not in ("command", "signal"):
        return ""
    words = ["tolaria-bus", "run", job, "--run", summary.run]
    for name in ("epochs", "steps", "run_dir", "seed"):
        if options.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    for assignment in assignments:
        words += ["--set", assignment]
    return f"to go on: {shlex.join(words)}"


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


def show(summary: RunSummary, words: str) -> None:
    """Print the table on standard output, and how to go on: see :func:`go_on`."""
    _print(rows(summary))
    if words:
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
