"""``tolaria-bus weatherlight``: workers that are watched, and started again when they fail."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tolaria_bus.cli.lazy import command


class WorkerLogs(StrEnum):
    """Where workers write."""

    FILE = "file"
    INHERIT = "inherit"


def weatherlight(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(metavar="JOB", show_default=False, help="A worker for each."),
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More workers, in TOML; see the docs.")
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run", metavar="ID", help="The run's id. [default: after its job]"),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A server of your own (TOLARIA_REDIS_URL). [default: one is started]",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of ours and of all workers, or with job.NAME an option of the jobs.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65_535, metavar="N", help="Serve /healthz, /readyz and /metrics there."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Its own folder. [default: runs/.weatherlight]"),
    ] = None,
    worker_logs: Annotated[
        WorkerLogs, typer.Option(help="Into worker.log of each run's folder, or where we write.")
    ] = WorkerLogs.FILE,
) -> None:
    """Start workers and keep them going: tell hung from slow from dead, restart, raise alerts.

    Ctrl-C stops the workers in good order. Killed itself, it leaves them at work: the same command
    adopts them. Exits 0 when every run came to its end, 1 if one was given up.
    """
    from tolaria_bus.configured import key_ring
    from tolaria_bus.logs import configure
    from tolaria_bus.settings import load
    from tolaria_bus.weatherlight import Watch, plan, supervise

    words = assignments or []
    settings, _ = load(words, redis_url=redis, metrics_port=port)
    configure("console" if sys.stderr.isatty() else "json")
    watch = Watch(
        fleet=plan(jobs or [], run=run_id, file=fleet, assignments=words),
        settings=settings,
        ring=key_ring(settings),
        state=state,
        inherit=worker_logs is WorkerLogs.INHERIT,
    )
    if code := supervise(watch):
        raise typer.Exit(code)


def build() -> Any:
    """Build the command."""
    return command(weatherlight, "weatherlight")
