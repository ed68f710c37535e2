"""``tolaria-bus tail``: what happens, line by line, until somebody has seen enough."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated, Any, Final

import typer

from tolaria_bus.cli.lazy import command
from tolaria_bus.cli.options import RedisOption, RunDirOption, RunOption

_SINCE: Final = re.compile(r"\d{1,20}(-\d{1,20})?")
_STREAMS: Final = "Streams"


def _stream_option(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", help=what, rich_help_panel=_STREAMS)


def tail(
    emergency: Annotated[bool, _stream_option("emergency", "Alerts and signals.")] = False,
    telemetry: Annotated[bool, _stream_option("telemetry", "Metrics and events.")] = False,
    outcomes: Annotated[bool, _stream_option("outcomes", "What became of commands.")] = False,
    state: Annotated[bool, _stream_option("state", "The run at the end of each epoch.")] = False,
    reports: Annotated[bool, _stream_option("reports", "What commands did to the run.")] = False,
    dead: Annotated[bool, _stream_option("dead", "Entries that could not be used.")] = False,
    control: Annotated[bool, _stream_option("control", "Commands on their way.")] = False,
    everything: Annotated[bool, _stream_option("all", "All of these.")] = False,
    run: RunOption = None,
    run_dir: RunDirOption = None,
    redis: RedisOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Begin after this entry id; 0: with all there is."),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N lines.")
    ] = None,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Stop when nothing more is there.")
    ] = False,
) -> None:
    """Follow alerts and outcomes, or the streams that are named.

    Several runs on one server are followed together, new ones as they come. Alerts of all runs
    are shown, unless --run names one. With signing keys set, what isn't signed with them is
    marked. Ctrl-C ends it.
    """
    if since is not None and _SINCE.fullmatch(since) is None:
        raise typer.BadParameter(
            "must be 0 or an entry's id, as 1700000000000-0", param_hint="--since"
        )

    import anyio

    from tolaria_bus.cli.leaving import leave_at_once
    from tolaria_bus.cli.locate import Asked, locate
    from tolaria_bus.cli.opening import Reader
    from tolaria_bus.cli.tailing import Tail, Wanted
    from tolaria_bus.cli.watched import DEFAULT, KINDS
    from tolaria_bus.settings import load

    named = (emergency, telemetry, outcomes, state, reports, dead, control)
    chosen = tuple(kind for kind, given in zip(KINDS, named, strict=True) if given or everything)
    settings, _ = load()
    place = locate(Asked(redis=redis, run_dir=run_dir, run=run), settings)
    wanted = Wanted(
        kinds=chosen or DEFAULT,
        since=since,
        count=count,
        run=run,
        follow=not no_follow,
        as_json=as_json,
    )
    leave_at_once()
    try:
        anyio.run(Tail(wanted, place, Reader.of(settings)).show)
    except BrokenPipeError:
        # Here, as typer would make a failure of it. Python would complain at exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build() -> Any:
    """Build the command."""
    return command(tail, "tail")
