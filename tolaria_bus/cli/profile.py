"""``tolaria-bus profile``: where the time of a run goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tolaria_bus.cli.lazy import command
from tolaria_bus.cli.options import RedisOption, RunDirOption

STEPS: Final = 20
WAIT_SECONDS: Final = 120.0

RunIdArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", show_default=False, help="Its id; else the only live one."),
]


def profile(
    run: RunIdArgument = None,
    steps: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Steps to record a trace of.")
    ] = STEPS,
    phases: Annotated[
        bool,
        typer.Option("--phases", help="Record nothing: show what the run tells all the time."),
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Copy the trace there, if it is on this machine."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    wait: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait for the steps.")
    ] = WAIT_SECONDS,
    run_dir: RunDirOption = None,
    redis: RedisOption = None,
) -> None:
    """Ask a live run for a trace of its next steps, and show where the time goes.

    Phases, operators and memory come over the bus, from any machine; the trace itself stays in the
    run's folder. Exit code: 0 shown, 1 shown but without the trace that was asked for, 2 not asked,
    3 refused, 4 nothing came in time.
    """
    from tolaria_bus.cli.locate import Asked
    from tolaria_bus.cli.profile_asking import Wish, show

    if phases and trace is not None:
        raise typer.BadParameter("records no trace", param_hint="--phases")
    wish = Wish(
        where=Asked(redis=redis, run_dir=run_dir, run=run),
        steps=0 if phases else steps,
        trace=trace,
        as_json=as_json,
        seconds=wait,
    )
    raise typer.Exit(show(wish))


def build() -> Any:
    """Build the command."""
    return command(profile, "profile")
