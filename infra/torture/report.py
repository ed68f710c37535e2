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

    def totals(self, seconds: float) -> dict[str, float]:
        """What it comes to, in numbers."""
        tallies = [item.tally for item in self.rounds]
        return {
            "runs": len(self.rounds),
            "kills": sum(tally.kills.total() for tally in tallies),
            "trapped": sum(tally.trapped for tally in tallies),
            "recoveries": sum(tally.recoveries for tally in tallies),
            "cold": sum(tally.cold for tally in tallies),
            "disturbances": sum(tally.disturbances.total() for tally in tallies),
            "damage": sum(tally.damage.total() for tally in tallies),
            "orders": sum(item.sent.total() for item in self.rounds),
            "outcomes": sum(item.outcomes.total() for item in self.rounds),
            "complaints": sum(len(item.complaints) for item in self.rounds),
            "seconds": seconds,
        }

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
        total = self.totals(seconds)
        self._console.print(
            f"{total['runs']} runs, killed {total['kills']} times and {total['trapped']} times by a"
            f" command that ends its process; {total['recoveries']} recoveries, {total['cold']} of"
            f" all starts from a cold interpreter; {seconds:.0f} s",
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
