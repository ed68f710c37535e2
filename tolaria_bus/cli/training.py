"""One run from checked settings to its summary; the worker's package is imported in between."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tolaria_bus.settings import SettingError, Settings, load

if TYPE_CHECKING:
    from tolaria_bus.tolaria.replay import ReplaySummary
    from tolaria_bus.tolaria.summary import Progress, RunSummary


def train(
    job: str,
    assignments: Sequence[str],
    *,
    embedded: bool,
    new: bool,
    summary: Path | None,
    **options: Any,
) -> str:
    """Run a job to its end and show how it went.

    Args:
        job: As ``run`` takes it.
        assignments: ``name=value`` words of ``--set``.
        embedded: For people: start a server if none is named, show progress and a table. Else the
            server must be named, and everything is JSON lines.
        new: Begin anew a run that the server knows.
        summary: File for the summary as JSON.
        options: Settings that have an option of their own; ``None`` where it isn't given.

    Returns:
        What the summary says in ``stopped_by``.

    Raises:
        SettingError: A setting is wrong.
        Exception: whatever ``run_worker`` raises.
    """
    # Before torch is loaded: who mistypes a setting hears of it at once.
    settings, job_options = load(assignments, **options)
    if not embedded and settings.redis_url is None:
        raise SettingError(
            "setting redis_url: a worker needs a server: --redis or TOLARIA_REDIS_URL"
        )
    if summary is not None:
        check_writable(summary)
    if embedded:
        say(f"loading {job}")
    finished = _work(job, job_options, settings, embedded=embedded, new=new)
    if summary is not None:
        write_summary(summary, finished)
    if embedded:
        from tolaria_bus.cli.closing import go_on, show

        show(finished, go_on(finished, job, assignments, options))
    return finished.stopped_by


def write_summary(path: Path, summary: RunSummary | ReplaySummary) -> None:
    """Write the summary as JSON, whole or not at all.

    Raises:
        OSError: It can't be written there.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(orjson.dumps(summary.to_json(), option=orjson.OPT_INDENT_2) + b"\n")
    scratch.replace(path)


def check_writable(path: Path, option: str = "--summary") -> None:
    """See before hours of training whether a file could be written there.

    Raises:
        SettingError: It couldn't.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise SettingError(f"{option} {path}: the folder {folder} doesn't exist")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise SettingError(f"{option} {path}: can't be written there")


def _work(
    job: str, job_options: dict[str, str], settings: Settings, *, embedded: bool, new: bool
) -> RunSummary:
    from tolaria_bus.cli.progress import EpochLines, EpochLog, progress_bar
    from tolaria_bus.worker import WorkerSpec, run_worker

    def work(progress: Callable[[Progress], None]) -> RunSummary:
        return run_worker(
            WorkerSpec(
                job=job,
                job_options=job_options,
                settings=settings,
                embedded=embedded,
                progress=progress,
                log="console" if embedded else "json",
                new=new,
            )
        )

    if not embedded:
        return work(EpochLog())
    if not sys.stderr.isatty():
        return work(EpochLines(sys.stderr))
    bar: AbstractContextManager[Callable[[Progress], None]] = progress_bar()
    with bar as show:
        return work(show)


def say(text: str) -> None:
    """Tell somebody who sits before a terminal what takes a moment."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
