"""Tells what happens: a heading and the time of each step, commands as a user would type them, the verdicts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.rule import Rule
from rich.table import Table


class DemoError(Exception):
    """A step did not happen as it must."""


def _console() -> Console:
    """A console wide enough for the tables, also where the output is a file."""
    console = Console(highlight=False)
    return console if console.width >= 110 else Console(highlight=False, width=110)


@dataclass
class Narrator:
    """Holds the console, and what was shown so far."""

    console: Console = field(default_factory=_console)
    times: list[tuple[str, float]] = field(default_factory=list)
    verdicts: list[tuple[str, str, bool]] = field(default_factory=list)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step; its wall-clock time is noted, also when it fails."""
        start = time.monotonic()
        self.console.print()
        self.console.print(Rule(f"[bold]{len(self.times) + 1}. {title}[/]", align="left"))
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            self.times.append((title, seconds))
            self.console.print(f"[dim]{seconds:.1f} s[/]")

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def command(self, line: str) -> None:
        self.console.print(f"[bold cyan]$ {line}[/]", soft_wrap=True)

    def output(self, text: str) -> None:
        if text.strip():
            self.console.print(text.rstrip(), markup=False, soft_wrap=True)

    def verdict(self, what: str, figure: str, happened: bool) -> None:
        """Note whether something that the demo must show happened; the first that did not ends it.

        Raises:
            DemoError: it did not.
        """
        self.verdicts.append((what, figure, happened))
        mark = "[bold green]✓[/]" if happened else "[bold red]✗[/]"
        self.console.print(f"{mark} {what}: [bold]{figure}[/]", soft_wrap=True)
        if not happened:
            raise DemoError(f"{what}: {figure}")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        self.console.print(title, style="bold", markup=False, soft_wrap=True)
        table = Table()
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def summary(self) -> None:
        """The table at the end."""
        self.console.print()
        self.table(
            "What was shown",
            ["", "", ""],
            [[what, figure, "yes" if happened else "NO"] for what, figure, happened in self.verdicts],
        )
        total = sum(seconds for _, seconds in self.times)
        rows = [[title, f"{seconds:.1f} s"] for title, seconds in self.times]
        self.table("Time", ["step", "seconds"], [*rows, ["all", f"{total:.1f} s"]])
