"""The report of one model on one machine: report.json for programs, a table for people.

Format "riceseg-report", version 1; its fields and units stand in `engines.reports.check`. The first
row is what the others are compared to.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from engines.errors import BundleError, OutputError, output_error
from engines.progress import printable
from engines.reports.check import FORMAT, FORMAT_VERSION, check_finite, checked_report

__all__ = [
    "ALWAYS_SHOWN",
    "COLUMNS",
    "FILE_NAME",
    "FORMAT",
    "FORMAT_VERSION",
    "NOT_MEASURED",
    "Column",
    "aligned_table",
    "cell_text",
    "check_file_writable",
    "check_writable",
    "checked_report",
    "comparison_rows",
    "form_text",
    "json_text",
    "markdown_row",
    "markdown_text",
    "measured_columns",
    "report_from_file",
    "rows_with_change",
    "table_markdown",
    "write_report_json",
    "write_text",
]

FILE_NAME = "report.json"
MAX_JSON_BYTES = 32_000_000
NOT_MEASURED = "not measured"

Column = Tuple[str, str, int]  # heading, key, digits after the point

# "change" is the mIoU's difference to the first row.
COLUMNS: Tuple[Column, ...] = (
    ("mIoU", "miou", 2),
    ("change", "change", 2),
    ("mAcc", "macc", 2),
    ("aAcc", "aacc", 2),
    ("equal %", "agreement", 2),
    ("p50 ms", "latency_p50_ms", 1),
    ("p95 ms", "latency_p95_ms", 1),
    ("p99 ms", "latency_p99_ms", 1),
    ("fps", "fps", 1),
    ("fps (events)", "fps_events", 1),
    ("copy in ms", "copy_in_ms", 2),
    ("compute ms", "compute_ms", 2),
    ("copy out ms", "copy_out_ms", 2),
    ("memory MB", "peak_memory_mb", 0),
    ("GPU MB", "gpu_memory_mb", 0),
    ("file MB", "file_mb", 1),
    ("W", "power_w", 2),
    ("mJ / image", "energy_mj", 1),
    ("GPU MHz", "gpu_clock_mhz", 0),
    ("°C", "temperature_c", 0),
    ("throttled", "throttled", 0),
)
# The others depend on the device or came later: shown where at least one row has them.
ALWAYS_SHOWN = (
    *("miou", "change", "macc", "aacc", "agreement"),
    *("latency_p50_ms", "latency_p95_ms", "fps", "peak_memory_mb", "file_mb"),
)


def report_from_file(path: Path) -> Dict[str, Any]:
    """The content of a report.json with every field of the format; BundleError if it is not one."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        document = json.loads(data)
        check_finite(document)
    except OSError as error:
        raise BundleError(
            f"{path} ({error.strerror or error})",
            expected=f"a {FILE_NAME}, or a folder with one",
            do="check the path",
        ) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} ({error})", expected=f"a {FILE_NAME}", do="evaluate the model again"
        ) from error
    return checked_report(document)


def write_report_json(report: Mapping[str, Any], folder: Union[str, os.PathLike[str]]) -> Path:
    """Writes report.json into `folder`, which is made if needed, and returns its path.

    NaN and infinity become null, missing optional fields are filled in. Raises BundleError if
    `report` does not fit the format, OutputError if the file cannot be written; what was there
    before then stays.
    """
    path = Path(folder) / FILE_NAME
    write_text(path, json_text(checked_report(report)))
    return path


def json_text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def comparison_rows(
    report: Mapping[str, Any], *, keys: Optional[Sequence[str]] = None
) -> List[Tuple[str, ...]]:
    """The comparison as text: headings, then a row per form, with "not measured" or "failed".

    A column that came with a device, as power, is there if at least one row has it. `keys` leaves
    out the columns of other keys, for a place too narrow for all.
    """
    rows = rows_with_change(checked_report(report))
    columns = [column for column in measured_columns(rows) if keys is None or column[1] in keys]
    cells = [
        (form_text(row), *(cell_text(row, key, digits) for _, key, digits in columns))
        for row in rows
    ]
    return [("form", *(heading for heading, _, _ in columns)), *cells]


def table_markdown(report: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table; the reasons of failed rows follow it."""
    headings, *rows = comparison_rows(report)
    lines = [markdown_row(headings), "| --- |" + " ---: |" * (len(headings) - 1)]
    lines += [markdown_row(row) for row in rows]
    for row in report["rows"]:
        if row.get("error"):
            lines += ["", f"{markdown_text(row['form'])}: {markdown_text(row['error'])}"]
    return "\n".join(lines) + "\n"


def form_text(row: Mapping[str, Any]) -> str:
    """The form of a checked row, and how images were run if not whole and without augmentation."""
    how = [row.get("mode") or "whole", row.get("tta") or "none"]
    return ", ".join([row["form"], *(text for text in how if text not in ("whole", "none"))])


def measured_columns(rows: Sequence[Mapping[str, Any]]) -> List[Column]:
    """The columns to show: those of ALWAYS_SHOWN, and each of which a row has a value."""
    return [
        column
        for column in COLUMNS
        if column[1] in ALWAYS_SHOWN or any(row.get(column[1]) is not None for row in rows)
    ]


def cell_text(row: Mapping[str, Any], key: str, digits: int) -> str:
    """One figure of a row of `rows_with_change` as it is shown."""
    value = row[key]
    if key == "change" and row["is_reference"]:
        return "–"
    if value is None:
        return "failed" if row["error"] and key == "miou" else NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    # -0.001 would be shown as "-0.00", which reads as a loss.
    return f"{round(value, digits) + 0.0:{'+' if key == 'change' else ''}.{digits}f}"


def markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"


def markdown_text(text: str) -> str:
    """`text` on one line, without a meaning in Markdown, HTML or to a terminal.

    Underscores stay as they are: inside of a name they mean nothing.
    """
    return re.sub(r"[\\|`*\[\]]|!(?=\[)", r"\\\g<0>", printable(text)).replace("<", "&lt;")


def aligned_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    shown: Callable[[str], str] = markdown_text,
) -> List[str]:
    """Lines of a Markdown table whose columns are straight on a terminal too.

    The first `left` columns are aligned left, the others right; a wide (Korean) character counts
    as two. `shown` makes a cell harmless where the table is going to.
    """
    lines = [[shown(cell) for cell in line] for line in (headings, *rows)]
    widths = [max(3, *(_width(line[i]) for line in lines)) for i in range(len(headings))]
    rule = [f"{'-' * (w - 1)}{'-' if i < left else ':'}" for i, w in enumerate(widths)]
    return [_table_line(line, widths, left) for line in (lines[0], rule, *lines[1:])]


def _table_line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded = []
    for i, cell in enumerate(cells):
        blanks = " " * (widths[i] - _width(cell))
        padded.append(cell + blanks if i < left else blanks + cell)
    return "| " + " | ".join(padded) + " |"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def rows_with_change(document: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The rows of a checked report with `is_reference` and `change` (of mIoU, to the first)."""
    rows = document["rows"]
    first = rows[0]["miou"]
    return [
        {
            **row,
            "is_reference": row is rows[0],
            "change": None if None in (first, row["miou"]) else row["miou"] - first,
        }
        for row in rows
    ]


def check_writable(folder: Path) -> None:
    """OutputError if files cannot be made in `folder`, before anything long is done for them.

    It need not be there yet, and is not made.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        problem = "not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = "no permission to write"
    else:
        return
    raise OutputError(
        f"{problem} at {there}",
        expected="a folder that can be written to, or a path where one can be made",
        do="choose another folder",
    )


def check_file_writable(path: Path) -> None:
    """OutputError unless a file can be made at `path`, or one replaced."""
    if path.is_dir():
        raise OutputError(
            f"{path}, which is a folder", expected="a file to write", do="add a name to the path"
        )
    check_writable(path.absolute().parent)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 beside `path` and renames; file names that are no UTF-8 become escapes.

    The folder is made if needed. Raises OutputError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(str(path), error, do="choose another folder") from error
