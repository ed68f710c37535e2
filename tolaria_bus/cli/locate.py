"""Which server and which run: from options, the environment, or the one run that is live here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tolaria_bus.oona.connection import redacted
from tolaria_bus.oona.running import Found, find, running
from tolaria_bus.oona.streams import Streams, check_run_id
from tolaria_bus.settings import Settings


class NotLocated(ValueError):
    """No server, or not one run alone; one line naming what was tried."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says; ``None`` where it says nothing."""

    redis: str | None = None
    run_dir: Path | None = None
    run: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A server, and the run if that is known without asking the server.

    Attributes:
        url: Of the server, with its password.
        run: The run's id, or ``None``: see :func:`only_run`.
        streams: The names of its keys.
        found_by: What named the server, for messages to people.
    """

    url: str
    run: str | None
    streams: Streams
    found_by: str


def locate(asked: Asked, settings: Settings) -> Place:
    """Find the server: ``--redis``, ``--run-dir``, ``TOLARIA_REDIS_URL``, else an embedded one.

    An embedded one is that of ``--run`` (or ``TOLARIA_RUN``), or the only one that is live.

    Raises:
        NotLocated: There is none, or more than one.
    """
    run = _run_id(asked.run, "--run") or settings.run
    if asked.redis is not None:
        return _at(asked.redis, run, settings, "--redis")
    if asked.run_dir is not None:
        return _embedded(_of_folder(asked.run_dir, run), settings, f"--run-dir {asked.run_dir}")
    if settings.redis_url is not None:
        return _at(settings.redis_url, run, settings, "TOLARIA_REDIS_URL")
    if run is not None:
        return _embedded(_of_run(run, settings), settings, f"run {run}")
    return _embedded(_only_one(), settings, "the only run that is live here")


def only_run(known: list[str], place: Place) -> str:
    """Return the run of a server that knows just one.

    Args:
        known: Ids of the runs that the server knows.
        place: Where.

    Raises:
        NotLocated: It knows none, or several.
    """
    if len(known) == 1:
        return known[0]
    shown = redacted(place.url)
    if not known:
        raise NotLocated(f"no run is live on {shown} ({place.found_by}): name one with --run ID")
    raise NotLocated(
        f"{len(known)} runs are live on {shown}: name one with --run: {_listed(known)}"
    )


def _at(url: str, run: str | None, settings: Settings, found_by: str) -> Place:
    return Place(url, run, Streams(settings.prefix), found_by)


def _embedded(found: Found, settings: Settings, found_by: str) -> Place:
    return Place(found.url, found.run, Streams(settings.prefix), found_by)


def _run_id(run: str | None, option: str) -> str | None:
    try:
        return None if run is None else check_run_id(run)
    except ValueError as error:
        raise NotLocated(f"{option}: {error}") from None


def _of_folder(folder: Path, run: str | None) -> Found:
    found = find(folder=folder)
    if found is None:
        raise NotLocated(
            f"--run-dir {folder}: no live server in it (its worker has ended, or uses --redis)"
        )
    if run is not None and found.run != run:
        raise NotLocated(f"--run-dir {folder}: is of run {found.run}, not of {run}")
    return found


def _of_run(run: str, settings: Settings) -> Found:
    found = find(run=run) or find(run=run, folder=settings.run_dir or settings.runs_dir / run)
    if found is not None:
        return found
    live = [item.run for item in running()]
    others = f"; live here: {_listed(live)}" if live else "; no run is live here"
    raise NotLocated(
        f"run {run}: no embedded server of it is live here{others}"
        " (for a server of your own: --redis URL or TOLARIA_REDIS_URL)"
    )


def _only_one() -> Found:
    live = running()
    if len(live) == 1:
        return live[0]
    if not live:
        raise NotLocated(
            "no server: --redis isn't given, TOLARIA_REDIS_URL isn't set,"
            " and no run with an embedded server is live here"
        )
    names = _listed([item.run for item in live])
    raise NotLocated(f"{len(live)} runs are live here: name one with --run: {names}")


def _listed(runs: list[str]) -> str:
    shown = ", ".join(sorted(runs)[:8])
    return shown if len(runs) <= 8 else f"{shown} and {len(runs) - 8} more"
