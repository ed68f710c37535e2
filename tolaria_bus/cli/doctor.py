"""``tolaria-bus doctor``: what is installed, reachable, signed, writable; and the mend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from tolaria_bus.cli.lazy import command
from tolaria_bus.cli.options import RedisOption, RunDirOption

if TYPE_CHECKING:
    from pathlib import Path

    from tolaria_bus.cli.finding import Finding
    from tolaria_bus.settings import Settings


def doctor(redis: RedisOption = None, run_dir: RunDirOption = None) -> None:
    """Say what is installed, reachable, signed and writable, with the mend; 1 if something fails.

    ✓ is as it should be, ! works but is worth knowing, ✗ doesn't work.
    """
    from tolaria_bus.cli.finding import exit_code, line
    from tolaria_bus.cli.style import wants_colour

    found: list[Finding] = []
    for finding in _findings(redis, run_dir):
        # One by one: torch takes a while to load.
        print(line(finding, colour=wants_colour(sys.stdout)), flush=True)
        found.append(finding)
    raise typer.Exit(exit_code(found))


def build() -> Any:
    """Build the command."""
    return command(doctor, "doctor")


def _findings(redis: str | None, run_dir: Path | None) -> Iterator[Finding]:
    from tolaria_bus.cli.check_machine import device, installed, run_folder
    from tolaria_bus.cli.finding import bad
    from tolaria_bus.settings import SettingError, load

    yield from installed()
    yield from device()
    try:
        settings, _ = load(redis_url=redis, run_dir=run_dir)
    except SettingError as error:
        yield bad("settings", str(error))
        return
    yield from run_folder(settings.run_dir or settings.runs_dir)
    yield from _servers(settings, run_dir)


def _servers(settings: Settings, run_dir: Path | None) -> Iterator[Finding]:
    import anyio

    from tolaria_bus.cli.check_server import server, trust
    from tolaria_bus.cli.finding import good
    from tolaria_bus.oona.running import find, running

    if settings.redis_url is not None:
        urls = [settings.redis_url]
    elif run_dir is not None:
        found = find(folder=run_dir)
        urls = [found.url] if found is not None else []
    else:
        urls = [item.url for item in running()]
    if not urls:
        yield good("server", "none is named and none runs here: a run starts its own")
    for url in urls:
        yield from anyio.run(server, url, settings)
    yield trust(settings, settings.redis_url)
