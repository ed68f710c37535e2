"""``tolaria-bus tamiyo``: the controller, as a service on the bus."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Annotated, Any

import typer

from tolaria_bus.cli.lazy import command
from tolaria_bus.cli.options import RedisOption, RunDirOption, RunOption
from tolaria_bus.cli.words import ComposeError, assignments


def tamiyo(
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="heuristic, continue, one of a package's, or module:attribute."
        ),
    ] = "heuristic",
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Of the policy."),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="NAME=VALUE", help="What no policy may exceed."),
    ] = None,
    runs: Annotated[
        str, typer.Option(metavar="GLOB", help="Which runs; several instances share them.")
    ] = "*",
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of this instance. [default: machine and process]"),
    ] = None,
    max_age: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="Older state packets aren't answered.")
    ] = 60.0,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, metavar="N", help="Serve /healthz and /metrics there."),
    ] = None,
    run: RunOption = None,
    run_dir: RunDirOption = None,
    redis: RedisOption = None,
) -> None:
    """Answer the state of runs at the end of each epoch: seeds, learning rates, pauses.

    It keeps nothing and may be killed and started again; any number of it share the runs of a
    server. Ctrl-C ends it.
    """
    import structlog

    from tolaria_bus.cli.locate import Asked, locate
    from tolaria_bus.cli.serving import serve_until_signalled
    from tolaria_bus.configured import check_trust, key_ring
    from tolaria_bus.logs import configure
    from tolaria_bus.settings import load
    from tolaria_bus.tamiyo.limits import Limits
    from tolaria_bus.tamiyo.policies import make
    from tolaria_bus.tamiyo.service import Service, default_name

    settings, _ = load((), metrics_port=port)
    configure("console" if sys.stderr.isatty() else "json")
    place = locate(Asked(redis=redis, run_dir=run_dir, run=run), settings)
    ring = key_ring(settings)
    service = Service(
        url=place.url,
        policy=make(policy, assignments("--option", options or []), load=True),
        limits=_limits(Limits, limits or []),
        ring=ring,
        streams=place.streams,
        runs=runs if run is None else run,
        name=name or default_name(),
        max_age=timedelta(seconds=max_age),
    )
    if warning := check_trust(settings, ring, place.url, "steer runs through this one"):
        structlog.get_logger().warning(warning)
    serve_until_signalled(service, settings)


def _limits(kind: Any, words: list[str]) -> Any:
    given = assignments("--limit", words)
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ComposeError(f"--limit: {error}") from None


def build() -> Any:
    """Build the command."""
    return command(tamiyo, "tamiyo")
