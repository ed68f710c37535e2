"""Where a run is, while it goes on: a bar on a terminal, else lines, or log entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan
from typing import TextIO

import structlog
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tolaria_bus.tolaria.summary import Progress


def in_words(progress: Progress) -> str:
    """``epoch 3/10  loss 0.123  accuracy 97.1 %  lr 0.001  231 steps/s``, and what is unusual."""
    words = [
        f"epoch {progress.epoch}/{progress.epochs}",
        # Before the first step has been judged there is none.
        "" if isnan(progress.loss) else f"loss {progress.loss:.4g}",
        "" if progress.accuracy is None else f"accuracy {progress.accuracy:.2%}",
        f"lr {progress.lr:.3g}",
        _speed(progress.steps_per_second),
        f"timeline {progress.timeline}" if progress.timeline > 1 else "",
        progress.mode.upper() if progress.mode != "running" else "",
    ]
    return "  ".join(filter(None, words))


def _speed(steps_per_second: float) -> str:
    if not steps_per_second:
        return ""
    return f"{steps_per_second:.{0 if steps_per_second >= 10 else 2}f} steps/s"


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error that goes away at the end; lines logged meanwhile stand above it."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[words]}"),
        BarColumn(bar_width=24),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        # A second Ctrl-C ends the process on the spot, and nobody would show the cursor again.
        console.show_cursor(True)
        task = bar.add_task("", total=1, words="starting", visible=False)

        def show(progress: Progress) -> None:
            bar.update(
                task,
                visible=True,
                total=max(progress.total_steps, 1),
                completed=progress.step,
                words=in_words(progress),
            )

        yield show


class _PerEpoch:
    """Tells of each epoch once, and of each change of mode."""

    def __init__(self) -> None:
        self._told: tuple[int, int, str] | None = None

    def __call__(self, progress: Progress) -> None:
        """Take note of where the run is."""
        now = (progress.timeline, progress.epoch, progress.mode)
        if now != self._told:
            self._told = now
            self.tell(progress)

    def tell(self, progress: Progress) -> None:
        """Tell it."""
        raise NotImplementedError


class EpochLines(_PerEpoch):
    """A readable line for each epoch, where there is no terminal."""

    def __init__(self, output: TextIO) -> None:
        super().__init__()
        self._output = output

    def tell(self, progress: Progress) -> None:
        """Write the line."""
        place = f"step {progress.step}/{progress.total_steps}"
        print(f"{place}  {in_words(progress)}", file=self._output, flush=True)


class EpochLog(_PerEpoch):
    """A log entry for each epoch."""

    def tell(self, progress: Progress) -> None:
        """Log it."""
        structlog.get_logger().info(
            "progress",
            step=progress.step,
            total_steps=progress.total_steps,
            epoch=progress.epoch,
            loss=progress.loss,
            accuracy=progress.accuracy,
            learning_rate=progress.lr,
            mode=progress.mode,
            timeline=progress.timeline,
        )
