"""Which workers there shall be: from words of the command line, or from a file.

A fleet file is TOML::

    [settings]                    # of every worker; --set wins over these
    epochs = 100

    [[worker]]
    job = "digits"
    run = "digits-wide"           # its id; default: made from the job's name
    settings = { seed = 1, "job.width" = 32 }       # win over all others
    environment = { CUDA_VISIBLE_DEVICES = "0" }
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tolaria_bus.oona.streams import RUN_ID
from tolaria_bus.settings import SettingError, Settings, load

_OURS = frozenset({"run", "run_dir", "redis_url", "metrics_port"})
"""Settings that a fleet gives its workers itself, or that can't be the same for several."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One worker that there shall be.

    Attributes:
        job: As ``tolaria-bus worker`` takes it.
        run: The run's id.
        folder: The run's.
        known: Its settings: those of the fleet, its own, and our environment's.
        settings: The same as ``name=value`` words, but for the environment's.
        environment: Variables on top of ours.
    """

    job: str
    run: str
    folder: Path
    known: Settings
    settings: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)


Model = TypeVar("Model", bound=BaseModel)


class _Worker(BaseModel):
    model_config = ConfigDict(extra="forbid")

    job: str = Field(min_length=1)
    run: str | None = Field(None, pattern=RUN_ID.pattern + "$")
    settings: dict[str, str | int | float | bool] = {}
    environment: dict[str, str] = {}


class _Fleet(BaseModel):
    model_config = ConfigDict(extra="forbid")

    settings: dict[str, str | int | float | bool] = {}
    worker: list[_Worker] = Field(min_length=1)


def plan(
    jobs: Sequence[str], *, run: str | None, file: Path | None, assignments: Iterable[str]
) -> list[Planned]:
    """The workers that are asked for.

    Args:
        jobs: Jobs named on the command line, each a worker.
        run: The id of the only one of them.
        file: A fleet file, for more.
        assignments: ``name=value``, settings of them all.

    Raises:
        SettingError: There are none, two have one id, or a setting or the file is wrong.
    """
    if run is not None and len(jobs) != 1:
        raise SettingError(f"--run {run}: names one job's run, and there are {len(jobs)} jobs")
    workers = [_checked(_Worker, {"job": job, "run": run}, "the command line") for job in jobs]
    shared = list(assignments)
    if file is not None:
        fleet = _read(file)
        shared = [*_words(fleet.settings), *shared]
        workers += fleet.worker
    if not workers:
        raise SettingError("no worker is asked for: name a JOB, or a --fleet file")
    return _named(workers, shared)


def _named(workers: Sequence[_Worker], shared: Sequence[str]) -> list[Planned]:
    taken = Counter(worker.run for worker in workers if worker.run is not None)
    twice = [run for run, count in taken.items() if count > 1]
    if twice:
        raise SettingError(f"run {twice[0]}: two workers of the fleet have this id")
    planned = []
    for worker in workers:
        run = worker.run or _free(_name(worker.job), taken)
        words = [*shared, *_words(worker.settings)]
        ours = {word.partition("=")[0] for word in words} & _OURS
        if ours:
            raise SettingError(f"setting {min(ours)}: a fleet's workers can't have it as a setting")
        settings, _ = load(words, run=run)
        if settings.hang_seconds >= settings.lease_seconds:
            raise SettingError(
                f"setting hang_seconds = {settings.hang_seconds:g}: must be below lease_seconds "
                f"({settings.lease_seconds:g}), so that a worker that hangs still holds its run"
            )
        folder = settings.runs_dir / run
        planned.append(Planned(worker.job, run, folder, settings, words, worker.environment))
    return planned


def _name(job: str) -> str:
    """``moons.py:Moons`` is Moons: what the job is called where it is defined."""
    found = job.rpartition(":")[2] if ":" in job else job
    return "".join(letter if RUN_ID.fullmatch(letter) else "-" for letter in found)[:48]


def _free(name: str, taken: Counter[str]) -> str:
    """The name itself, or with a number, the same for the same list at every start."""
    number, free = 1, name
    while taken[free]:
        number += 1
        free = f"{name}-{number}"
    taken[free] += 1
    return free


def _read(file: Path) -> _Fleet:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"--fleet {file}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"--fleet {file}: {error}") from None
    return _checked(_Fleet, content, f"--fleet {file}")


def _checked(kind: type[Model], content: dict[str, Any], source: str) -> Model:
    try:
        return kind(**content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingError(f"{source}: {where}: {first['msg']}") from None


def _words(settings: dict[str, str | int | float | bool]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]
