"""Groups of commands that build only the one that is asked for.

Building a command costs milliseconds (every option gets a validator of its own), importing what it
needs costs more, and ``send`` has to feel immediate.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

HELP: Final = {"help_option_names": ["-h", "--help"]}
Loader = Callable[[], Any]
"""Builds one command, ready to be invoked."""


class ReaderGone(Exception):
    """Nobody reads the output any more."""


class LazyGroup(TyperGroup):
    """A group whose commands are built at first use; see :func:`group`."""

    loaders: ClassVar[Mapping[str, Loader]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order in which ``--help`` shows them."""
        del ctx
        return list(self.loaders)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, built now if it wasn't yet; ``None`` if unknown."""
        del ctx
        if cmd_name not in self.commands and cmd_name in self.loaders:
            self.commands[cmd_name] = self.loaders[cmd_name]()
            # A group is built without one, and --help would list it without one.
            self.commands[cmd_name].name = cmd_name
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that ``args`` begin with, or fail with what may have been meant."""
        name = args[0]
        if name not in self.loaders and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.loaders, n=1)
            meant = f"did you mean {close[0]}?" if close else f"known: {', '.join(self.loaders)}"
            ctx.fail(f"no such command {name!r}; {meant}")
        return super().resolve_command(ctx, args)


def group(members: Mapping[str, Loader]) -> type[LazyGroup]:
    """Return a class of group with these commands."""
    return type("CommandGroup", (LazyGroup,), {"loaders": members})


def build_group(before: Callable[..., Any], members: Mapping[str, Loader], **options: Any) -> Any:
    """Build a group.

    Args:
        before: Called before any of its commands; its docstring is the group's own help.
        members: Its commands.
        options: More for typer.
    """
    app = typer.Typer(
        cls=group(members),
        add_completion=False,
        rich_markup_mode="markdown",
        context_settings=HELP,
        no_args_is_help=True,
        **options,
    )
    app.callback()(before)
    return get_command(app)


def build_words(before: Callable[..., Any], *words: Callable[..., Any]) -> Any:
    """Build a group whose commands are these functions, under their own names."""
    return build_group(
        before, {word.__name__: functools.partial(command, word, word.__name__) for word in words}
    )


def command(function: Callable[..., Any], name: str) -> Any:
    """Build one command from a function whose annotations are its arguments and options."""

    @functools.wraps(function)
    def run(*words: Any, **options: Any) -> Any:
        try:
            return function(*words, **options)
        except BrokenPipeError:
            # typer would make a failure of it; whoever pipes into `head` has what he wants.
            raise ReaderGone from None

    single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    single.command(name, context_settings=HELP)(run)
    return get_command(single)
