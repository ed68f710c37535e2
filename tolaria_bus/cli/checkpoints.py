"""``tolaria-bus checkpoints``: the words of its commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tolaria_bus.cli.journal import JsonOption, RunArgument
from tolaria_bus.cli.lazy import build_words

if TYPE_CHECKING:
    from tolaria_bus.tolaria.recovery.checkpoint_view import CheckpointView

_BAD: Final = 1

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="[NAME|STEP]", show_default=False, help="Which; by default the newest live one."
    ),
]


def ls(run: RunArgument, as_json: JsonOption = False) -> None:
    """List a run's checkpoints, the newest last; ✗ marks those that can't be used or are undone.

    Manifests and sizes are looked at: `verify` reads everything.
    """
    from tolaria_bus.cli import checkpoint_lines as lines
    from tolaria_bus.cli.style import paint, wants_colour

    view, colour = _view(run), wants_colour(sys.stdout)
    seen = view.all()
    for item in seen:
        print(lines.as_json(item) if as_json else paint(lines.line(item), colour=colour))
    if not seen and not as_json:
        print(paint([("no checkpoints", "warn"), (f"in {view.folder}", "dim")], colour=colour))


def verify(
    run: RunArgument,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|STEP]...", show_default=False, help="Which; else all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of checkpoints and compare it with its checksum; nothing is set aside.

    Exit code: 0 all are good, 1 some aren't, 2 wrong usage.
    """
    from tolaria_bus.cli import checkpoint_lines as lines
    from tolaria_bus.cli.style import paint, wants_colour

    view, colour = _view(run), wants_colour(sys.stdout)
    found = [view.checked(name) for name in names or ()]
    seen = [item for items in found for item in items] if names else view.all(deep=True)
    for item in seen:
        print(lines.as_json(item) if as_json else paint(lines.verdict(item), colour=colour))
    if not seen and not as_json:
        print(paint([("no checkpoints", "warn"), (f"in {view.folder}", "dim")], colour=colour))
    raise typer.Exit(_BAD if any(item.problem for item in seen) else 0)


def show(run: RunArgument, name: NameArgument = "", as_json: JsonOption = False) -> None:
    """Show what is in one checkpoint: where it stands, the model's tensors, rates, seeds, mode."""
    from tolaria_bus.cli import checkpoint_lines as lines
    from tolaria_bus.cli.style import wants_colour

    seen = _view(run).named(name)
    if as_json:
        print(lines.as_json(seen, whole=True))
        return
    for text in lines.page(seen, colour=wants_colour(sys.stdout)):
        print(text)


def export(
    run: RunArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Ends in .safetensors, or in .pt or .pth.")
    ],
    name: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            metavar="NAME|STEP",
            show_default=False,
            help="Which; by default the newest live one.",
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Write a checkpoint's model as a plain `state_dict`, for use elsewhere.

    Every byte is verified first. Nothing is pickled in .safetensors; .pt and .pth are read with
    `torch.load(FILE, weights_only=True)`.
    """
    from tolaria_bus.tolaria.recovery.exporting import check_target
    from tolaria_bus.tolaria.recovery.exporting import export as write

    check_target(file, overwrite=force)
    view = _view(run)
    seen = view.named(name)
    assert seen.manifest is not None
    meta = seen.manifest.meta
    about = {"job": str(meta.get("job", "")), "checkpoint": seen.name, "step": str(meta["step"])}
    found = write(file, view.load(seen), meta, about)
    count = sum(tensor.numel() for tensor in found.values())
    print(f"{file}: {len(found)} tensors, {count:,} numbers, of {seen.name}")


def build() -> Any:
    """Build the group ``checkpoints``."""
    return build_words(_before, ls, verify, show, export)


def _before() -> None:
    """Look into a run's checkpoints, verify them, take a model out; nothing in them is changed."""


def _view(run: str) -> CheckpointView:
    from tolaria_bus.cli.run_place import run_folder
    from tolaria_bus.settings import load
    from tolaria_bus.tolaria.recovery.checkpoint_view import CheckpointView

    settings, _ = load()
    return CheckpointView(run_folder(run, settings))
