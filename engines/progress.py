"""What a long stage tells about its work, as lines for a log or one moving line on a terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import Callable, ContextManager, Iterator, List, Optional, Protocol, TextIO, Tuple

_log = logging.getLogger(__name__)

StageTimes = List[Tuple[str, float]]  # title and seconds of each stage, in the order they ended


class Progress(Protocol):
    """What a stage function tells about its work. Stages may lie inside each other."""

    @property
    def times(self) -> StageTimes:
        """The stages that ended so far, failed ones included."""

    def stage(self, title: str) -> ContextManager[None]:
        """Around the work called `title`; an exception marks it failed and goes on."""

    def advance(self, done: int, total: Optional[int]) -> None:
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

    def advance(self, done: int, total: Optional[int]) -> None:
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
        self._running: List[Tuple[str, float, int]] = []  # title, last report's time and percent
        self._started: List[float] = []

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        started = self._clock()
        self._line(f"{title} ...")
        self._running.append((title, started, 0))
        self._started.append(started)
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            self._running.pop()
            self._started.pop()
            self.times.append((title, self._clock() - started))
            self._line(f"{title}: {outcome} ({duration_text(self.times[-1][1])})")

    def advance(self, done: int, total: Optional[int]) -> None:
        if not self._running:
            return
        title, reported_at, reported = self._running[-1]
        percent = 100 * done // total if total else 0
        now = self._clock()
        if now - reported_at < self.STEP_S and percent < reported + self.STEP_PERCENT:
            return
        self._running[-1] = (title, now, percent)
        share = f"{percent} % " if total else ""
        self._line(f"{title}: {share}({count_text(done, total)})")

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def _line(self, text: str) -> None:
        self._stream.write(self._shown(text) + "\n")
        self._stream.flush()

    def _shown(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        text = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        return "  " * len(self._running) + text


class TerminalProgress(PlainProgress):
    """The same lines, and below them one that moves: a bar, the count and the time left.

    For a terminal where no progress library is installed, as on a board.
    """

    WIDTH = 24
    STEP_S = 0.1  # between two drawings

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock=clock)
        self._moving = False

    def advance(self, done: int, total: Optional[int]) -> None:
        if not self._running:
            return
        title, drawn_at, _ = self._running[-1]
        now = self._clock()
        if now - drawn_at < self.STEP_S and done != total:
            return
        self._running[-1] = (title, now, 0)
        filled = self.WIDTH * min(done, total) // total if total else 0
        text = f"{title} [{'#' * filled}{'.' * (self.WIDTH - filled)}] {count_text(done, total)}"
        spent = now - self._started[-1]
        if total and 0 < done < total and spent > 1.0:
            text += f", {duration_text(spent * (total - done) / done)} left"
        self._stream.write("\r" + self._shown(text) + "\x1b[K")
        self._stream.flush()
        self._moving = True

    def _line(self, text: str) -> None:
        if self._moving:
            self._stream.write("\r\x1b[K")
            self._moving = False
        super()._line(text)


def text_progress(stream: TextIO) -> Progress:
    """Without a progress library: a moving line if `stream` is a terminal that can, else lines."""
    if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return TerminalProgress(stream)
    return PlainProgress(stream)


def count_text(done: int, total: Optional[int]) -> str:
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
