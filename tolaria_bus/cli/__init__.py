"""The command line ``tolaria-bus``: parses, prints, and calls one function below.

What a command needs is imported when it runs: ``send`` has to answer before anybody wonders, and
torch alone takes longer than that to load.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from tolaria_bus import __version__
from tolaria_bus.cli.failures import USER_ERROR, one_line
from tolaria_bus.cli.lazy import HELP, ReaderGone, group

PROGRAM: Final = "tolaria-bus"
INTERRUPTED: Final = 130
_COMMANDS: Final = (
    "run", "worker", "weatherlight", "tamiyo", "policy", "send", "status", "tail", "profile",
    "dlq", "history",
    "journal", "checkpoints", "doctor",
)  # fmt: skip
_ELSEWHERE: Final = {"worker": ("run", "build_worker"), "history": ("journal", "build_history")}
"""Commands that live in another module than their own name's: the module, and what builds them."""


def _load(name: str) -> Any:
    module, build = _ELSEWHERE.get(name, (name, "build"))
    return getattr(importlib.import_module(f"tolaria_bus.cli.{module}"), build)()


def _loader(name: str) -> Any:
    return lambda: _load(name)


app = typer.Typer(
    cls=group({name: _loader(name) for name in _COMMANDS}),
    context_settings=HELP,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit."),
    ] = False,
) -> None:
    """Train a PyTorch model that is steered over Redis Streams while it trains."""
    del version


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 wrong usage or setting (one line on standard error).

    Args:
        arguments: Words after the program's name; by default those of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a letter shows its escape, rather than nothing at all.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(
            args=None if arguments is None else list(arguments),
            prog_name=PROGRAM,
            standalone_mode=False,
        )
    except KeyboardInterrupt:
        code = INTERRUPTED
    except ReaderGone:
        code = _reader_gone()
    except Exception as error:  # noqa: BLE001 - what isn't known is raised again
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


def _reader_gone() -> int:
    """Whoever read our output has enough of it: leave quietly."""
    # Python would complain when it flushes standard output at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _explain(error: Exception) -> int:
    """Print one line and return 2; what is no user's error is raised again.

    Raises:
        Exception: ``error``, with its traceback.
    """
    line = one_line(error)
    if line is None and hasattr(error, "format_message"):
        # A wrong option or word, by whichever click typer brings along.
        context = getattr(error, "ctx", None)
        if type(error).__name__.startswith("NoArgsIsHelp"):
            print(error.format_message())
            return USER_ERROR
        where = context.command_path if context is not None else PROGRAM
        line = f"{error.format_message().rstrip('.')}; see {where} --help"
    if line is None:
        raise error
    print(f"{PROGRAM}: {' '.join(line.split())}", file=sys.stderr)
    return USER_ERROR
