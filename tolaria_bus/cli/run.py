"""``tolaria-bus run`` and ``worker``: one run in this process, with its progress and its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tolaria_bus.cli.lazy import command

_LOST = "lease"
"""What ``stopped_by`` says when another worker took the run."""
_TAKEN_EXIT: Final = 1

Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="digits, bytes_lm, module:attribute or path/to/file.py:attribute."
    ),
]
Epochs = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Passes over the data; else the job's.")
]
Steps = Annotated[int | None, typer.Option(min=1, metavar="N", help="Optimizer steps in all.")]
RunId = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="The run's id; a known one goes on.")
]
RunDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The run's folder. [default: runs/ID]")
]
Seed = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Of data order, weights and dropout.")
]
Summary = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the summary there as JSON.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A setting, or with job.NAME an option of the job."
    ),
]
ReplayOf = Annotated[
    str | None,
    typer.Option(
        "--replay",
        metavar="RUN",
        help="Repeat the run of this id or folder from its journal, without a bus.",
    ),
]
Profile = Annotated[
    int | None,
    typer.Option(
        "--profile", min=1, max=10_000, metavar="N", help="Record a trace of the first N steps."
    ),
]
New = Annotated[bool, typer.Option("--new", help="Begin anew a run that the server knows already.")]


def run(
    job: Job,
    epochs: Epochs = None,
    steps: Steps = None,
    run_id: RunId = None,
    run_dir: RunDir = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A server of your own (TOLARIA_REDIS_URL). [default: one is started]",
        ),
    ] = None,
    seed: Seed = None,
    summary: Summary = None,
    assignments: Assignments = None,
    profile: Profile = None,
    new: New = False,
    replay: ReplayOf = None,
) -> None:
    """Train a job; steer it from another terminal with `tolaria-bus send`.

    Ctrl-C finishes the step, saves and exits; the same command goes on from there. A second
    Ctrl-C exits at once, and loses nothing either.

    With `--replay` a steered run is done again, every command at its step, and the weights are
    compared with those that were recorded: exit code 0 if they are the same, or none were
    recorded, 1 if not. The run's folder is only read; `--run-dir` keeps what the repeated one
    comes to.
    """
    if replay is not None:
        from tolaria_bus.cli.replaying import repeat

        given = {"--run": run_id is not None, "--redis": redis is not None, "--new": new,
                 "--profile": profile is not None}  # fmt: skip
        raise typer.Exit(
            repeat(
                job,
                replay,
                assignments or [],
                unwanted=[name for name, is_given in given.items() if is_given],
                summary=summary,
                folder=run_dir,
                epochs=epochs,
                steps=steps,
                seed=seed,
            )
        )
    from tolaria_bus.cli.training import train

    _exit(
        train(
            job,
            assignments or [],
            embedded=True,
            new=new,
            summary=summary,
            epochs=epochs,
            steps=steps,
            run=run_id,
            run_dir=run_dir,
            redis_url=redis,
            seed=seed,
            profile_steps=profile,
        )
    )


def worker(
    job: Job,
    epochs: Epochs = None,
    steps: Steps = None,
    run_id: RunId = None,
    run_dir: RunDir = None,
    redis: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The server; TOLARIA_REDIS_URL does as well."),
    ] = None,
    seed: Seed = None,
    summary: Summary = None,
    assignments: Assignments = None,
    profile: Profile = None,
    new: New = False,
) -> None:
    """Train a job as a consumer of a server that runs already; logs are JSON lines.

    SIGTERM finishes the step, saves and exits 0; started again, it goes on from there.
    """
    from tolaria_bus.cli.training import train

    _exit(
        train(
            job,
            assignments or [],
            embedded=False,
            new=new,
            summary=summary,
            epochs=epochs,
            steps=steps,
            run=run_id,
            run_dir=run_dir,
            redis_url=redis,
            seed=seed,
            profile_steps=profile,
        )
    )


def build() -> Any:
    """Build the command ``run``."""
    return command(run, "run")


def build_worker() -> Any:
    """Build the command ``worker``."""
    return command(worker, "worker")


def _exit(stopped_by: str) -> None:
    if stopped_by == _LOST:
        raise typer.Exit(_TAKEN_EXIT)
