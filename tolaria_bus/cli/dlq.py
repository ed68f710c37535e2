"""``tolaria-bus dlq``: the words of its commands. What they do is in ``dlq_*``."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from tolaria_bus.cli.lazy import build_words
from tolaria_bus.cli.options import RedisOption, RunDirOption, RunOption

SharedOption = Annotated[
    bool, typer.Option("--shared", help="Letters of the streams that all runs share.")
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Only such letters: reason, stream, group, source, type or command_id; * and ? stand"
        " for any letters. Repeated: of one key any, all keys.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(metavar="ID|AGE", help="Only later than this letter, or this age, as 30m or 2d."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ID", show_default=False, help="Of letters.")
]
EveryOption = Annotated[bool, typer.Option("--all", help="All letters there are.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")
]
LimitOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="With --where or --all: so many at most.")
]

_LIMIT: Final = 100


def ls(
    where: WhereOption = None,
    since: SinceOption = None,
    count: Annotated[
        int, typer.Option(min=1, metavar="N", help="Show the N newest; all are counted.")
    ] = 100,
    shared: SharedOption = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Of every run on the server, and shared ones.")
    ] = False,
    run: RunOption = None,
    run_dir: RunDirOption = None,
    redis: RedisOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, the newest last, and count them by reason."""
    from tolaria_bus.cli.dlq_listing import Listing, list_letters
    from tolaria_bus.cli.dlq_place import Choice, Streams
    from tolaria_bus.cli.locate import Asked

    which = Streams.EVERY if everything else Streams.SHARED if shared else Streams.RUN
    choice = Choice.parse(Asked(redis=redis, run_dir=run_dir, run=run), which, where, since)
    list_letters(choice, Listing(count=count, as_json=as_json))


def show(
    letter: Annotated[str, typer.Argument(metavar="ID", help="Of the letter.")],
    shared: SharedOption = False,
    run: RunOption = None,
    run_dir: RunDirOption = None,
    redis: RedisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything about one letter: why, what it says, the entry's own fields."""
    from tolaria_bus.cli.dlq_listing import show_letter
    from tolaria_bus.cli.dlq_place import Choice, Streams
    from tolaria_bus.cli.locate import Asked

    which = Streams.SHARED if shared else Streams.RUN
    choice = Choice.parse(Asked(redis=redis, run_dir=run_dir, run=run), which, ids=[letter])
    show_letter(choice, as_json=as_json)


def replay(
    ids: IdsArgument = None,
    where: WhereOption = None,
    since: SinceOption = None,
    everything: EveryOption = False,
    limit: LimitOption = _LIMIT,
    json: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="'{…}'|FILE|-",
            help="A message as JSON in place of that of the one letter; -: from stdin.",
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="A new deadline for commands, from now on."),
    ] = None,
    resign: Annotated[
        bool,
        typer.Option(
            "--resign",
            help="Also what isn't believed: sign it as yours. Look at it with `dlq show` first.",
        ),
    ] = False,
    dry_run: DryRunOption = False,
    shared: SharedOption = False,
    run: RunOption = None,
    run_dir: RunDirOption = None,
    redis: RedisOption = None,
    json_output: Annotated[
        bool, typer.Option("--json-output", help="Print what became of each as JSON.")
    ] = False,
) -> None:
    """Put entries of dead letters back into their streams, and remove the letters.

    A command keeps its id: one that was applied before is answered DUPLICATE, one that was
    REJECTED or EXPIRED may be applied now. Exit code: 0 all replayed, 1 some not, 2 wrong usage.
    """
    from tolaria_bus.cli.dlq_changing import Changing, Mending, replay_letters
    from tolaria_bus.cli.dlq_place import Choice, Streams
    from tolaria_bus.cli.locate import Asked

    which = Streams.SHARED if shared else Streams.RUN
    asked = Asked(redis=redis, run_dir=run_dir, run=run)
    choice = Choice.parse(asked, which, where, since, ids=ids, everything=everything, narrow=True)
    changing = Changing(limit=limit, dry_run=dry_run, as_json=json_output)
    mending = Mending(json=json, deadline=deadline, resign=resign)
    raise typer.Exit(replay_letters(choice, changing, mending))


def purge(
    ids: IdsArgument = None,
    where: WhereOption = None,
    since: SinceOption = None,
    everything: EveryOption = False,
    limit: LimitOption = _LIMIT,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    dry_run: DryRunOption = False,
    shared: SharedOption = False,
    run: RunOption = None,
    run_dir: RunDirOption = None,
    redis: RedisOption = None,
    json_output: Annotated[
        bool, typer.Option("--json-output", help="Print what became of each as JSON.")
    ] = False,
) -> None:
    """Remove dead letters for good; asks before it does.

    Exit code: 0 all purged, 1 some not, 2 wrong usage.
    """
    from tolaria_bus.cli.dlq_changing import Changing, purge_letters
    from tolaria_bus.cli.dlq_place import Choice, Streams
    from tolaria_bus.cli.locate import Asked

    which = Streams.SHARED if shared else Streams.RUN
    asked = Asked(redis=redis, run_dir=run_dir, run=run)
    choice = Choice.parse(asked, which, where, since, ids=ids, everything=everything, narrow=True)
    changing = Changing(limit=limit, dry_run=dry_run, as_json=json_output)
    raise typer.Exit(purge_letters(choice, changing, yes=yes))


def build() -> Any:
    """Build the group ``dlq``."""
    return build_words(_before, ls, show, replay, purge)


def _before() -> None:
    """Look into the dead letters: entries that could not be used, each with its reason."""
