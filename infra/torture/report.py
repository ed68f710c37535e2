"""What a person sees of a torture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from infra.torture.lane import Round


class Report:
    """Shows rounds as they come, and all of them together at the end.

    Args:
        console: Where.
        command: How to have the same again.
    """

    def __init__(self, console: Console, command: str) -> None:
        self.rounds: list[Round] = []
        self._console = console
        self._command = command
        console.print(f"[dim]the same choices again:[/dim] {command}", highlight=False)

    @property
    def failed(self) -> bool:
        """A run did what it must not."""
        return any(item.complaints for item in self.rounds)

    def add(self, item: Round) -> None:
        """Show one round."""
        self.rounds.append(item)
        killed = item.tally.kills.total()
        verdict = "[red]FAILED[/red]" if item.complaints else "ok"
        self._console.print(
            f"run {item.number:3d}  {item.job:8s}  killed {killed:3d} times, and"
            f" {item.tally.trapped} by a command; {item.sent.total():3d} orders;"
            f" {item.seconds:5.1f} s  {verdict}",
            highlight=False,
        )
        for line in item.complaints[:20]:
            self._console.print(f"    {line}", style="red", markup=False, highlight=False)
        if item.folder:
            self._console.print(f"    everything of it is in {item.folder}", highlight=False)

    def close(self, seconds: float) -> None:
        """Show all of them together."""
        for title, first, counts in (
            ("Killed", "where", _sum(item.tally.kills for item in self.rounds)),
            ("Disturbed", "how", _sum(item.tally.disturbances for item in self.rounds)),
            ("Damaged between two lives", "what", _sum(item.tally.damage for item in self.rounds)),
            ("Sent meanwhile", "kind", _sum(item.sent for item in self.rounds)),
            ("Answered", "status", _sum(item.outcomes for item in self.rounds)),
        ):
            if counts:
                self._console.print(_table(title, first, counts))
        kills = sum(item.tally.kills.total() for item in self.rounds)
        trapped = sum(item.tally.trapped for item in self.rounds)
        recoveries = sum(item.tally.recoveries for item in self.rounds)
        cold = sum(item.tally.cold for item in self.rounds)
        self._console.print(
            f"{len(self.rounds)} runs, killed {kills} times and {trapped} times by a command that"
            f" ends its process; {recoveries} recoveries, {cold} of all starts from a cold"
            f" interpreter; {seconds:.0f} s",
            highlight=False,
        )
        if self.failed:
            self._console.print(f"FAILED; again: {self._command}", style="bold red")
        else:
            self._console.print(
                "Every run ended with the bits of one that was never killed, with one effect and"
                " one outcome for each command, and no alert lost.",
                style="green",
            )


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _table(title: str, first: str, counts: Counter[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    table.add_column("times", justify="right")
    rows: Sequence[tuple[str, int]] = counts.most_common()
    for name, count in rows:
        table.add_row(name, str(count))
    return table
