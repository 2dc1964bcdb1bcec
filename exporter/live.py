"""What a long command shows on a terminal: live bars with rich, and the comparison as a table."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from engines.progress import (
    PlainProgress,
    Progress,
    StageTimes,
    count_text,
    duration_text,
    printable,
)
from engines.reports.report import ALWAYS_SHOWN, NOT_MEASURED, comparison_rows

# As many columns as 80 characters hold; the others are in the report's files.
TERMINAL_KEYS = (*ALWAYS_SHOWN, "latency_p99_ms")


class RichProgress:
    """A live bar per running stage on a terminal, and one line with its time when it ends."""

    def __init__(self, console: Console) -> None:
        self.times: StageTimes = []
        self._console = console
        self._bars: Bars | None = None
        self._running: list[TaskID] = []

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        title = printable(title)
        started, depth = time.monotonic(), len(self._running)
        mark = ("✗ ", "bold red")
        try:
            self._start(title)
            yield
            mark = ("✓ ", "bold green")
        finally:
            self._stop(depth)
            self.times.append((title, time.monotonic() - started))
            self._print(mark, title, (f"  {duration_text(self.times[-1][1])}", "dim"))

    def advance(self, done: int, total: int | None) -> None:
        if self._bars and self._running:
            count = count_text(done, total)
            self._bars.update(self._running[-1], completed=done, total=total, count=count)

    def note(self, text: str) -> None:
        self._print((printable(text), "dim"))

    def warn(self, text: str) -> None:
        self._print(("warning: ", "yellow"), printable(text))

    def _start(self, title: str) -> None:
        if self._bars is None:
            self._bars = Bars(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[count]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        self._running.append(self._bars.add_task(title, total=None, count=""))

    def _stop(self, depth: int) -> None:
        """Back to `depth` running stages; with none, the terminal has its cursor again."""
        while self._bars and len(self._running) > depth:
            self._bars.remove_task(self._running.pop())
            self._bars.refresh()
        if self._bars and depth == 0:
            self._bars.stop()
            self._bars = None

    def _print(self, *parts: str | tuple[str, str]) -> None:
        self._console.print(Text.assemble("  " * len(self._running), *parts))


def progress_for(stream: TextIO) -> Progress:
    """Live bars if `stream` is a terminal that can show them, else plain lines."""
    encoding = (stream.encoding or "").lower().replace("-", "")
    if stream.isatty() and os.environ.get("TERM") != "dumb" and encoding == "utf8":
        return RichProgress(Console(file=stream, highlight=False))
    return PlainProgress(stream)


def scores_table(report: Mapping[str, Any]) -> Table:
    """The comparison of a report for the terminal; the reasons of failed rows stand below it."""
    headings, *rows = comparison_rows(report, keys=TERMINAL_KEYS)
    # As narrow as it gets, so that 80 columns are enough; only the first column may wrap.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column("\n".join(heading.split()), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_styled(cell, headings[i]) for i, cell in enumerate(row)))
    reasons = [
        printable(f"{row['form']}: {row['error']}") for row in report["rows"] if row.get("error")
    ]
    if any(NOT_MEASURED in row for row in rows):
        reasons.append(f"n/m: {NOT_MEASURED}")
    table.caption = Text("\n".join(reasons)) if reasons else None
    return table


def _styled(cell: str, heading: str) -> Text:
    if cell == NOT_MEASURED:
        return Text("n/m", "dim")
    if cell == "failed" or (heading == "change" and cell.startswith("-")):
        return Text(cell, "red")
    return Text(printable(cell))
