"""What a worker needs to know before it starts, checked before anything is begun."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tolaria_bus.settings import Settings
from tolaria_bus.tolaria.summary import Progress


@dataclass(frozen=True)
class WorkerSpec:
    """One worker, as asked for.

    Attributes:
        job: ``digits``, ``module:attribute`` or ``path/to/file.py:attribute``.
        settings: Everything that has a setting.
        job_options: The job's own options.
        embedded: Start a server in the run's folder where no URL is given.
        progress: Called on the event loop's thread a few times a second.
        log: How to log: for people, or as JSON lines.
        new: Start anew though the server knows a run of this id and the folder is empty.
    """

    job: str
    settings: Settings
    job_options: dict[str, str] = field(default_factory=dict)
    embedded: bool = True
    progress: Callable[[Progress], None] | None = None
    log: Literal["console", "json"] = "console"
    new: bool = False


def new_run_id(job: str) -> str:
    """A run id for somebody who gave none: the job, the minute, and what makes it unique."""
    stem = "".join(letter if letter.isalnum() else "-" for letter in job)[:40].strip("-") or "run"
    return f"{stem}-{time.strftime('%m%d-%H%M')}-{secrets.token_hex(2)}"


def run_path(settings: Settings, run: str) -> Path:
    """The run's folder, absolute."""
    return (settings.run_dir or settings.runs_dir / run).expanduser().resolve()
