"""What a person sees of the results."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.harness import Figure, Result


def show(result: Result, console: Console) -> None:
    """Print one subject as a table."""
    table = Table(
        title=f"{result.subject}: {result.about}  [dim]({result.seconds:.0f} s)[/dim]",
        title_justify="left",
    )
    table.add_column("what", overflow="fold")
    for name in ("median", "low - high", "baseline", "ratio", "rounds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("goal")
    for figure in result.figures:
        table.add_row(*_row(figure))
    console.print(table)


def _row(figure: Figure) -> list[str]:
    spread = ""
    if figure.low is not None and figure.high is not None and figure.rounds > 1:
        spread = f"{_number(figure.low)} - {_number(figure.high)}"
    return [
        figure.what,
        f"{_number(figure.value)} {figure.unit}",
        spread,
        "" if figure.baseline is None else _number(figure.baseline),
        "" if figure.ratio is None else f"{figure.ratio:.3f}",
        str(figure.rounds),
        figure.goal,
    ]


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
