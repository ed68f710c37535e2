"""What is shown: the command lines as a person would type them, and what they print."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

WIDTH = 100
"""Where the output is no terminal; a terminal has its own."""
CUT = 300
"""Characters of one line of output: the longest lines are for programs, not for the demo."""


class Screen:
    """The terminal of the demo."""

    def __init__(self) -> None:
        found = Console(highlight=False, soft_wrap=True)
        self.console = (
            found if found.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDTH)
        )

    def heading(self, text: str) -> None:
        """What comes next, and why."""
        self.console.print(f"\n[bold cyan]# {escape(text)}[/]")

    def command(self, line: str) -> None:
        """A command line, exactly as it is run."""
        self.console.print(f"[bold green]$[/] [bold]{escape(line)}[/]")

    def output(self, text: str) -> None:
        """What a command printed, its own colours kept."""
        for line in text.splitlines():
            self.console.print(Text.from_ansi(line[:CUT]))

    def note(self, text: str) -> None:
        """An observation of the demo's own."""
        self.console.print(f"  [dim]{escape(text)}[/]")

    def failure(self, text: str) -> None:
        """What didn't come true."""
        self.console.print(f"\n[bold red]the demo failed:[/] {escape(text)}")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table, cut to the terminal only where it must be."""
        table = Table(title=title, title_justify="left", title_style="bold", show_lines=False)
        for column in columns:
            table.add_column(
                column, overflow="fold", justify="right" if column == "step" else "left"
            )
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print()
        self.console.print(table, soft_wrap=False)
