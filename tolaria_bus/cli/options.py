"""Options that several commands share, each written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tolaria_bus.cli.locate import Asked
from tolaria_bus.leyline import AdaptationCommand

WAIT_SECONDS: Final = 10.0

RunOption = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="Which run; by default the only live one.")
]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="The run of this folder.")
]
RedisOption = Annotated[
    str | None,
    typer.Option("--redis", metavar="URL", help="A server of your own (TOLARIA_REDIS_URL)."),
]

_WHERE: Final = "Where"
_WHEN: Final = "When"
_ANSWER: Final = "Answer"


@dataclass(frozen=True, slots=True)
class Sending:
    """How a command is sent; ``None`` where the command line doesn't say."""

    run: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Which run; by default the only live one.",
            rich_help_panel=_WHERE,
        ),
    ] = None
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run of this folder.", rich_help_panel=_WHERE),
    ] = None
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A server of your own (TOLARIA_REDIS_URL).",
            rich_help_panel=_WHERE,
        ),
    ] = None
    fleet: Annotated[
        bool | None,
        typer.Option("--fleet", help="To every run on the server.", rich_help_panel=_WHERE),
    ] = None
    at_step: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Take effect when N steps are done.",
            rich_help_panel=_WHEN,
        ),
    ] = None
    at_epoch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Take effect at the end of epoch N.",
            rich_help_panel=_WHEN,
        ),
    ] = None
    late_ok: Annotated[
        bool | None,
        typer.Option(
            "--late-ok",
            help="If that has passed, take effect at once.",
            rich_help_panel=_WHEN,
        ),
    ] = None
    deadline: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Expires unless it takes effect within.",
            rich_help_panel=_WHEN,
        ),
    ] = None
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Shown wherever the command is.")
    ] = None
    command_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="COMMAND_ID",
            help="The command's id; a run takes an id once. By default a new one.",
        ),
    ] = None
    wait: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help=f"How long to wait for the answer; 0: don't. [default: {WAIT_SECONDS:g}]",
            rich_help_panel=_ANSWER,
        ),
    ] = None
    until_applied: Annotated[
        bool | None,
        typer.Option(
            "--until-applied",
            help="If it is deferred, go on waiting.",
            rich_help_panel=_ANSWER,
        ),
    ] = None
    json_output: Annotated[
        bool | None,
        typer.Option("--json-output", help="Print the answer as JSON.", rich_help_panel=_ANSWER),
    ] = None
    dry_run: Annotated[
        bool | None,
        typer.Option(
            "--dry-run",
            help="Print the command as JSON and send nothing.",
            rich_help_panel=_ANSWER,
        ),
    ] = None

    def over(self, other: Sending) -> Sending:
        """What is said here, else what ``other`` says."""
        chosen = {
            field.name: getattr(other, field.name)
            if getattr(self, field.name) is None
            else getattr(self, field.name)
            for field in fields(self)
        }
        return Sending(**chosen)

    @property
    def asked(self) -> Asked:
        """Which server and run the command line names."""
        return Asked(redis=self.redis, run_dir=self.run_dir, run=self.run)


def sends(
    compose: Callable[..., AdaptationCommand], send: Callable[[AdaptationCommand, Sending], int]
) -> Callable[..., None]:
    """Make a command of ``compose``, with the options of :class:`Sending` beside its own.

    They may also stand before the command's own word: the group leaves its :class:`Sending` in
    the context's ``obj``, and what the command says itself wins.

    Args:
        compose: Its parameters, with their annotations, are the command's arguments and options.
        send: Sends what ``compose`` returned, and returns the exit code.
    """

    @functools.wraps(compose)
    def run(context: typer.Context, **given: Any) -> None:
        said = Sending(**{field.name: given.pop(field.name) for field in fields(Sending)})
        before = context.obj if isinstance(context.obj, Sending) else Sending()
        raise typer.Exit(send(compose(**given), said.over(before)))

    return with_parameters(run, context_parameter(), *own_parameters(compose), *shared_parameters())


def with_parameters(
    function: Callable[..., None], *parameters: inspect.Parameter
) -> Callable[..., None]:
    """Give a function the signature that typer is to see."""
    # typer reads both; wraps() has copied those of the wrapped function.
    function.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    function.__annotations__ = {item.name: item.annotation for item in parameters}
    return function


def context_parameter() -> inspect.Parameter:
    """The parameter in which typer hands over its context."""
    return inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )


def own_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function, annotations evaluated, all of them to be passed by name."""
    found = inspect.signature(function, eval_str=True).parameters.values()
    return [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in found]


def shared_parameters() -> list[inspect.Parameter]:
    """The fields of :class:`Sending` as parameters."""
    found = inspect.signature(Sending, eval_str=True).parameters.values()
    return [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in found]
