"""``tolaria-bus status``: how a run is, or all runs of a server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tolaria_bus.cli.lazy import command
from tolaria_bus.cli.options import RedisOption, RunDirOption


def status(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", show_default=False, help="Its id; else all are listed."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each run.")] = False,
    run_dir: RunDirOption = None,
    redis: RedisOption = None,
) -> None:
    """Show how a run is: where, at what, what is open or off, what waits; or list all runs.

    Exit code: 0 it is at work, held, or came to a good end; 1 it hangs, is silent, dead or failed;
    2 it isn't known.
    """
    from tolaria_bus.cli.locate import Asked
    from tolaria_bus.cli.status_asking import show

    where = Asked(redis=redis, run_dir=run_dir, run=run)
    raise typer.Exit(show(where, one=run is not None or run_dir is not None, as_json=as_json))


def build() -> Any:
    """Build the command."""
    return command(status, "status")
