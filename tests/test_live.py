"""Progress on a terminal, in a log, and nowhere; the comparison as a terminal table."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from engines.progress import (
    PlainProgress,
    Progress,
    SilentProgress,
    TerminalProgress,
    duration_text,
    printable,
)
from exporter.live import RichProgress, progress_for, scores_table

ROOT = Path(__file__).parents[1]


class Terminal(io.StringIO):
    """A stream that says it is a terminal of the given encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass only when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def rich_progress() -> tuple[RichProgress, Terminal]:
    stream = Terminal()
    return RichProgress(Console(file=stream, force_terminal=True, width=100)), stream


def without_codes(text: str) -> list[str]:
    """Lines with text, without terminal codes; a line redrawn counts in its last state."""
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()
    return [shown for line in lines if (shown := line.split("\r")[-1].rstrip())]


def test_a_stage_in_a_log_has_a_start_and_an_end_with_its_time() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    with progress.stage("Export"):
        clock.now = 1.5
    assert stream.getvalue() == "Export ...\nExport: done (1.50 s)\n"
    assert progress.times == [("Export", 1.5)]


def test_a_failed_stage_in_a_log_says_so_and_lets_the_error_through() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=Clock())
    with pytest.raises(ValueError, match="no such node"), progress.stage("Export"):
        raise ValueError("no such node")
    assert stream.getvalue().endswith("Export: failed (0.00 s)\n")
    assert progress.times == [("Export", 0.0)]


def test_fast_steps_in_a_log_are_reported_every_ten_percent() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=Clock())
    with progress.stage("Calibrate"):
        for done in range(1, 1001):
            progress.advance(done, 1000)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "  Calibrate: 10 % (100/1000)"
    assert lines[10] == "  Calibrate: 100 % (1000/1000)"
    assert len(lines) == 12


def test_slow_steps_in_a_log_are_reported_every_five_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    with progress.stage("Build"):
        for second in range(1, 13):
            clock.now = float(second)
            progress.advance(second, None)
    assert stream.getvalue().splitlines()[1:-1] == ["  Build: (5)", "  Build: (10)"]


def test_bytes_are_shown_in_millions() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=Clock())
    with progress.stage("Download"):
        progress.advance(7_500_000, 15_000_000)
    assert "Download: 50 % (7.5/15.0 M)" in stream.getvalue()


def test_stages_inside_each_other_are_indented_and_timed_each() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    with progress.stage("All"):
        with progress.stage("Part"):
            clock.now = 2.0
        progress.warn("slow")
        progress.note("fine")
        clock.now = 3.0
    assert stream.getvalue().splitlines() == [
        "All ...",
        "  Part ...",
        "  Part: done (2.00 s)",
        "  warning: slow",
        "  fine",
        "All: done (3.00 s)",
    ]
    assert progress.times == [("Part", 2.0), ("All", 3.0)]


def test_a_log_that_is_not_unicode_gets_escapes_instead_of_an_error() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    PlainProgress(stream).note("벼 ✓")
    assert buffer.getvalue() == b"\\ubcbc \\u2713\n"


@pytest.mark.parametrize("make", [SilentProgress, lambda: PlainProgress(io.StringIO())])
def test_progress_outside_a_stage_is_harmless(make: Any) -> None:
    progress: Progress = make()
    progress.advance(1, 2)
    assert progress.times == []


def test_the_silent_progress_keeps_times_and_logs_what_matters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    progress = SilentProgress()
    with progress.stage("Export"):
        progress.advance(1, 2)
        progress.note("a note")
        progress.warn("a warning")
    assert [title for title, _ in progress.times] == ["Export"]
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("INFO", "a note"),
        ("WARNING", "a warning"),
    ]


def test_a_finished_stage_on_a_terminal_leaves_one_line_with_a_check_mark() -> None:
    progress, stream = rich_progress()
    with progress.stage("Export [b]to[/b] {x}"):
        progress.advance(3, 40)
        progress.note("opset 17")
        deadline = time.monotonic() + 10
        while "3/40" not in stream.getvalue():  # drawn by a thread, ten times a second
            assert time.monotonic() < deadline
            time.sleep(0.01)
    lines = without_codes(stream.getvalue())
    assert "  opset 17" in lines
    assert re.fullmatch(r"✓ Export \[b\]to\[/b\] \{x\}  0\.\d\d s", lines[-1])


def test_a_failed_stage_on_a_terminal_ends_with_a_cross() -> None:
    progress, stream = rich_progress()
    with pytest.raises(ValueError, match="bad"), progress.stage("Export"):
        raise ValueError("bad")
    assert re.fullmatch(r"✗ Export  0\.\d\d s", without_codes(stream.getvalue())[-1])
    assert [title for title, _ in progress.times] == ["Export"]


def test_an_interrupt_gives_the_cursor_back_even_from_an_inner_stage() -> None:
    progress, stream = rich_progress()
    with pytest.raises(KeyboardInterrupt), progress.stage("All"), progress.stage("Part"):
        raise KeyboardInterrupt
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")
    ended = [line for line in without_codes(stream.getvalue()) if "✗" in line]
    assert [line[:6] for line in ended] == ["  ✗ Pa", "✗ All "]


def test_a_stage_that_ended_is_not_drawn_again() -> None:
    progress, stream = rich_progress()
    with progress.stage("All"):
        with progress.stage("Part"):
            pass
        progress.warn("careful")
    after_warning = stream.getvalue().split("careful")[1]
    assert "All" in after_warning
    assert "Part" not in after_warning


def test_a_stage_can_follow_a_failed_one() -> None:
    progress, stream = rich_progress()
    with pytest.raises(ValueError, match="bad"), progress.stage("First"):
        raise ValueError("bad")
    with progress.stage("Second"):
        progress.advance(1, 1)
    assert without_codes(stream.getvalue())[-1].startswith("✓ Second")


def test_ctrl_c_on_a_real_terminal_shows_the_cursor_again() -> None:
    script = (
        "import sys, time; from exporter.live import progress_for\n"
        "try:\n"
        "    with progress_for(sys.stdout).stage('Working'):\n"
        # Short naps: a signal that comes just before one long sleep would wait for its end.
        "        for _ in range(600): time.sleep(0.05)\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen, interrupted, deadline = b"", False, time.monotonic() + 60
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux: the other side is closed
                break
            seen += piece
            if not interrupted and b"Working" in seen:
                interrupted = True
                process.send_signal(signal.SIGINT)
    os.close(ours)
    assert process.returncode == 130
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    assert "✗".encode() in seen


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [
        (Terminal(), "xterm", RichProgress),
        (Terminal(), "dumb", PlainProgress),
        (Terminal("ascii"), "xterm", PlainProgress),
        (io.StringIO(), "xterm", PlainProgress),
    ],
)
def test_bars_are_for_terminals_that_can_show_them(
    monkeypatch: pytest.MonkeyPatch, stream: Any, term: str, kind: type
) -> None:
    monkeypatch.setenv("TERM", term)
    assert type(progress_for(stream)) is kind


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 s"),
        (9.99, "9.99 s"),
        (9.999, "10.0 s"),
        (59.9, "59.9 s"),
        (59.99, "1 min 00 s"),
        (185.0, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3725.0, "1 h 02 min"),
    ],
)
def test_durations_read_like_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_text_from_outside_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\x9b벼") == "a?[2Jb c?벼"


def table_text(report: dict[str, Any], width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(scores_table(report))
    return stream.getvalue().splitlines()


def comparison(*rows: dict[str, Any]) -> dict[str, Any]:
    names = {"format": "riceseg-report", "format_version": 1, "name": "x"}
    return {**names, "classes": [], "palette": [], "rows": list(rows)}


MEASURED = {
    "macc": 85.0,
    "aacc": 96.0,
    "agreement": 100.0,
    "latency_p50_ms": 175.4,
    "latency_p95_ms": 190.5,
    "fps": 13.3,
    "peak_memory_mb": 1812.0,
    "file_mb": 335.2,
}


def test_the_table_fits_eighty_columns_and_keeps_every_number_whole() -> None:
    lines = table_text(
        comparison(
            {"form": "PyTorch FP32", "miou": 78.24, **MEASURED},
            {"form": "ONNX INT8", "miou": 77.0, **MEASURED},
        ),
        width=80,
    )
    cells = " ".join(lines[2].split())
    assert cells == "PyTorch FP32 78.24 – 85.00 96.00 100.00 175.4 190.5 13.3 1812 335.2"
    assert "-1.24" in lines[3]
    assert max(map(cell_len, lines)) <= 80


def test_the_table_says_what_failed_and_what_was_not_measured() -> None:
    lines = table_text(
        comparison({"form": "PyTorch", **MEASURED}, {"form": "INT8", "error": "no\x1b GPU"}), 100
    )
    assert "n/m" in lines[2]
    assert lines[3].split()[:3] == ["INT8", "failed", "n/m"]
    assert [line.rstrip() for line in lines[-2:]] == ["INT8: no? GPU", "n/m: not measured"]


def test_korean_names_keep_the_columns_of_the_table_straight() -> None:
    lines = table_text(
        comparison({"form": "벼 생육", **MEASURED}, {"form": "ricefield", **MEASURED}), 100
    )
    first, second = lines[2], lines[3]
    assert cell_len(first[: first.index("85.00")]) == cell_len(second[: second.index("85.00")])


def test_without_rich_a_terminal_gets_one_moving_line_with_the_time_left() -> None:
    terminal, clock = Terminal(), Clock()
    progress = TerminalProgress(terminal, clock=clock)
    with progress.stage("build"):
        clock.now = 10.0
        progress.advance(1, 4)  # 10 s for a quarter: 30 s are left
        progress.note("도열병")
    assert terminal.getvalue() == (
        "build ...\n"
        "\r  build [######..................] 1/4, 30.0 s left\x1b[K"
        "\r\x1b[K  도열병\n"
        "build: done (10.0 s)\n"
    )
