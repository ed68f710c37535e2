"""``tolaria-bus journal show`` and ``tolaria-bus history``: what a run's journal has, to read."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tolaria_bus.cli.lazy import build_words, command
from tolaria_bus.settings import SettingError

if TYPE_CHECKING:
    from tolaria_bus.tolaria.recovery.journal_view import JournalView

KINDS: Final = (
    "started", "intent", "attempt", "result", "deferred", "decision", "cut", "checkpoint", "stopped"
)  # fmt: skip
_STEPS: Final = re.compile(r"(\d*):(\d*)|(\d+)")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def show(
    run: RunArgument,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help=f"Only such records: {', '.join(KINDS)}. Repeatable."),
    ] = None,
    command_id: Annotated[
        str | None, typer.Option("--command", metavar="ID", help="Only those of this command.")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="FROM:TO", help="Only those of these steps, inclusive."),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Only what no later rollback undid.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the records of a run's journal, the newest last; ✗ marks what a rollback undid.

    Works on a run in progress too, and changes nothing.
    """
    from tolaria_bus.cli import journal_lines as lines
    from tolaria_bus.cli.style import paint, wants_colour

    wanted, (first, last) = _kinds(kind or []), _steps(steps)
    view, colour = _view(run), wants_colour(sys.stdout)
    for record in view.records:
        undone = record.sequence in view.undone
        if (
            (wanted and record.WhichOneof("record") not in wanted)
            or not first <= record.step <= last
            or (command_id is not None and lines.command_id(record) != command_id)
            or (live and undone)
        ):
            continue
        if as_json:
            print(lines.record_json(record, undone=undone))
        else:
            print(paint(lines.record_line(record, undone=undone), colour=colour))
    _tell_tail(view)


def history(run: RunArgument, as_json: JsonOption = False) -> None:
    """Tell what happened to a run: starts, kills, commands, rollbacks, checkpoints, halts.

    Works on a run in progress too, and changes nothing.
    """
    from tolaria_bus.cli import journal_lines as lines
    from tolaria_bus.cli.style import paint, wants_colour
    from tolaria_bus.tolaria.recovery.history import history as told

    view, colour = _view(run), wants_colour(sys.stdout)
    happenings = told(view)
    if as_json:
        for happening in happenings:
            print(lines.happening_json(happening))
    else:
        run_id = view.records[0].started.run_id or run
        print(paint(lines.heading(happenings, run_id), colour=colour))
        for happening in happenings:
            print(paint(lines.happening_line(happening), colour=colour))
    _tell_tail(view)


def build() -> Any:
    """Build the group ``journal``."""
    return build_words(_before, show)


def build_history() -> Any:
    """Build the command ``history``."""
    return command(history, "history")


def _before() -> None:
    """Look into a run's journal: every command, decision and rollback, in order."""


def _view(run: str) -> JournalView:
    from tolaria_bus.cli.run_place import run_folder
    from tolaria_bus.settings import load
    from tolaria_bus.tolaria.recovery.journal_view import JournalView

    settings, _ = load()
    return JournalView.read(run_folder(run, settings))


def _tell_tail(view: JournalView) -> None:
    if view.tail is not None:
        print(
            f"{view.tail.segment}: behind the last record, at byte {view.tail.offset}, are "
            f"{view.tail.bytes} bytes of one that was torn, or is being written: it doesn't count",
            file=sys.stderr,
        )


def _kinds(words: list[str]) -> frozenset[str]:
    for word in words:
        if word not in KINDS:
            raise SettingError(f"--kind {word}: must be one of {', '.join(KINDS)}")
    return frozenset(words)


def _steps(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, sys.maxsize
    match = _STEPS.fullmatch(text)
    if match is None:
        raise SettingError(f"--steps {text}: must be a step, or FROM:TO with one of them left out")
    if match[3] is not None:
        return int(match[3]), int(match[3])
    return int(match[1] or 0), int(match[2]) if match[2] else sys.maxsize
