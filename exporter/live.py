"""What a long command shows while it works: stages with their time, on a terminal or in a log."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TextIO

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

from exporter.report import NOT_MEASURED, comparison_rows

_log = logging.getLogger(__name__)

StageTimes = list[tuple[str, float]]  # title and seconds of each stage, in the order they ended


class Progress(Protocol):
    """What a stage function tells about its work. Stages may lie inside each other."""

    @property
    def times(self) -> StageTimes:
        """The stages that ended so far, failed ones included."""

    def stage(self, title: str) -> AbstractContextManager[None]:
        """Around the work called `title`; an exception marks it failed and goes on."""

    def advance(self, done: int, total: int | None) -> None:
        """`done` of `total` steps of the innermost stage; None if the end is not known."""

    def note(self, text: str) -> None:
        """One line worth knowing."""

    def warn(self, text: str) -> None:
        """One line that the reader must not miss."""


class SilentProgress:
    """Shows nothing; notes and warnings go to the log."""

    def __init__(self) -> None:
        self.times: StageTimes = []

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.times.append((title, time.monotonic() - started))

    def advance(self, done: int, total: int | None) -> None:
        pass

    def note(self, text: str) -> None:
        _log.info("%s", text)

    def warn(self, text: str) -> None:
        _log.warning("%s", text)


class PlainProgress:
    """Lines for a log or a pipe: start and end of a stage, and now and then how far it is.

    A step is reported when it is 10 % further or 5 seconds later than the last one reported.
    """

    STEP_PERCENT = 10
    STEP_S = 5.0

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.times: StageTimes = []
        self._stream, self._clock = stream, clock
        self._running: list[tuple[str, float, int]] = []  # title, last report's time and percent

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        started = self._clock()
        self._line(f"{title} ...")
        self._running.append((title, started, 0))
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            self._running.pop()
            self.times.append((title, self._clock() - started))
            self._line(f"{title}: {outcome} ({duration_text(self.times[-1][1])})")

    def advance(self, done: int, total: int | None) -> None:
        if not self._running:
            return
        title, reported_at, reported = self._running[-1]
        percent = 100 * done // total if total else 0
        now = self._clock()
        if now - reported_at < self.STEP_S and percent < reported + self.STEP_PERCENT:
            return
        self._running[-1] = (title, now, percent)
        share = f"{percent} % " if total else ""
        self._line(f"{title}: {share}({_count_text(done, total)})")

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def _line(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        text = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        self._stream.write(f"{'  ' * len(self._running)}{text}\n")
        self._stream.flush()


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
            count = _count_text(done, total)
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
    headings, *rows = comparison_rows(report)
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


def _count_text(done: int, total: int | None) -> str:
    """ "3/40"; counts of a million or more, which are bytes as a rule, in millions."""
    largest = done if total is None else total
    shown = [f"{n / 1e6:.1f}" if largest >= 1_000_000 else f"{n}" for n in (done, largest)]
    unit = " M" if largest >= 1_000_000 else ""
    return f"{shown[0]}{unit}" if total is None else f"{shown[0]}/{shown[1]}{unit}"


def duration_text(seconds: float) -> str:
    """0.42 s, 12.3 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def printable(text: str) -> str:
    """`text` on one line, with control characters, which a terminal would obey, shown as "?"."""
    return "".join(
        character if character.isprintable() else "?" for character in " ".join(text.split())
    )
