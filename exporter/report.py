"""The report of one export: report.json for programs, report.html for people, a table for both.

Format "riceseg-report", version 1. Scores and agreement are percent, latency is ms, memory and
files are MB = 1e6 bytes; null means not measured. The first row is what the others are compared to.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import BundleError, OutputError
from exporter.report_page import html_from_report
from exporter.strips import Panel, Strip, overlay, strip_panels

__all__ = [
    "Panel",
    "Strip",
    "comparison_rows",
    "overlay",
    "report_from_file",
    "strip_panels",
    "table_markdown",
    "write_report",
]

FORMAT, FORMAT_VERSION = "riceseg-report", 1
MAX_JSON_BYTES = 32_000_000
NOT_MEASURED = "not measured"

# Heading, key, digits after the point; "change" is the mIoU's difference to the first row.
COLUMNS = (
    ("mIoU", "miou", 2),
    ("change", "change", 2),
    ("mAcc", "macc", 2),
    ("aAcc", "aacc", 2),
    ("equal %", "agreement", 2),
    ("p50 ms", "latency_p50_ms", 1),
    ("p95 ms", "latency_p95_ms", 1),
    ("fps", "fps", 1),
    ("memory MB", "peak_memory_mb", 0),
    ("file MB", "file_mb", 1),
)
_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "number": lambda value: type(value) in (int, float) and abs(value) <= 1e15,
    "count": lambda value: type(value) is int and value >= 0,
    "flag": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_ROW_KINDS = {
    **dict.fromkeys(("form", "precision", "runtime", "file", "sha256", "error"), "text"),
    **{key: "number" for _, key, _ in COLUMNS if key != "change"},
    **dict.fromkeys(("iou", "acc"), "list"),
    **dict.fromkeys(("batch", "warmup", "runs", "threads"), "count"),
}


def write_report(report: Mapping[str, Any], folder: Path, *, strips: Sequence[Strip] = ()) -> None:
    """Writes report.json and a self-contained report.html into `folder`, which is made if needed.

    NaN and infinity become null, missing optional fields are filled in, the first 12 strips are
    shown. Raises BundleError if `report` does not fit the format, OutputError if a file cannot be
    written; what was there before then stays.
    """
    document = _checked(_plain(report))
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    html = html_from_report(document, _rows_with_change(document), strips)
    _write_text(folder / "report.json", text)
    _write_text(folder / "report.html", html)


def report_from_file(path: Path) -> dict[str, Any]:
    """The content of a report.json with every field of the format; BundleError if it is not one."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        document = _plain(json.loads(data))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} ({error})", expected="a report.json", do="evaluate the model again"
        ) from error
    return _checked(document)


def comparison_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The comparison as text: headings, then a row per form, with "not measured" or "failed"."""
    rows = _rows_with_change(_checked(_plain(report)))
    cells = [
        (row["form"], *(_cell(row, key, digits) for _, key, digits in COLUMNS)) for row in rows
    ]
    return [("form", *(heading for heading, _, _ in COLUMNS)), *cells]


def table_markdown(report: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table; the reasons of failed rows follow it."""
    headings, *rows = comparison_rows(report)
    lines = [_markdown_row(headings), "| --- |" + " ---: |" * len(COLUMNS)]
    lines += [_markdown_row(row) for row in rows]
    for row in report["rows"]:
        if row.get("error"):
            lines += ["", f"{_markdown_text(row['form'])}: {_markdown_text(row['error'])}"]
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], key: str, digits: int) -> str:
    if key == "change" and row["is_reference"]:
        return "–"
    if row[key] is None:
        return "failed" if row["error"] and key == "miou" else NOT_MEASURED
    # -0.001 would be shown as "-0.00", which reads as a loss.
    return f"{round(row[key], digits) + 0.0:{'+' if key == 'change' else ''}.{digits}f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_markdown_text(cell) for cell in cells) + " |"


def _markdown_text(text: str) -> str:
    for character, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`")):
        text = text.replace(character, escaped)
    return " ".join(text.split())


def _rows_with_change(document: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def _plain(value: Any) -> Any:
    """`value` as JSON has it: dict, list, str, int, bool, finite float or None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"no place in a report for {type(value).__name__}")


def _checked(document: Any) -> dict[str, Any]:
    """A copy of `document`, plain JSON, with every field present and of its type."""
    texts, lists = ("name", "format", "created"), ("rows", "classes", "palette", "warnings")
    objects = ("checkpoint", "machine", "versions", "data", "gate", "calibration", "parity")
    full = _record(
        document,
        "report",
        **dict.fromkeys(texts, "text"),
        **dict.fromkeys((*lists, "worst", "input_hw"), "list"),
        **dict.fromkeys(objects, "object"),
    )
    version = (full["format"], full.get("format_version"))
    _require(version == (FORMAT, FORMAT_VERSION), version, "format", f"{FORMAT} version 1")
    full["name"] = full["name"] or ""
    for key in (*lists, "worst"):
        full[key] = full[key] or []
    for key in ("machine", "versions"):
        full[key] = full[key] or {}
    _require(len(full["rows"]) > 0, full["rows"], "rows", "at least one row")
    _require(all(isinstance(c, str) for c in full["classes"]), full["classes"], "classes", "names")
    _require(
        all(isinstance(w, str) for w in full["warnings"]), full["warnings"], "warnings", "texts"
    )
    _require(
        len(full["palette"]) == len(full["classes"]) and all(map(_is_rgb, full["palette"])),
        full["palette"],
        "palette",
        "one [red, green, blue] of 0 to 255 per class",
    )
    count = len(full["classes"])
    full["rows"] = [_row(row, f"rows[{i}]", count) for i, row in enumerate(full["rows"])]
    full["worst"] = [_record(w, "worst", image="text", agreement="number") for w in full["worst"]]
    return _with_records(full)


def _with_records(full: dict[str, Any]) -> dict[str, Any]:
    if full["checkpoint"] is not None:
        full["checkpoint"] = _record(full["checkpoint"], "checkpoint", file="text", sha256="text")
    if full["data"] is not None:
        kinds = {"folder": "text", "images": "count", "skipped": "list"}
        full["data"] = _record(full["data"], "data", **kinds)
    if (gate := full["gate"]) is not None:
        kinds = {"max_drop": "number", "drop": "number", "passed": "flag", "lost": "list"}
        full["gate"] = gate = _record(gate, "gate", **kinds)
        _require(gate["passed"] is not None, None, "gate.passed", "true or false")
        kinds = {"class": "text", "drop": "number"}
        gate["lost"] = [_record(item, "gate.lost", **kinds) for item in gate["lost"] or []]
    if (record := full["calibration"]) is not None:
        kinds = {"method": "text", "images": "count", "list": "list"}
        full["calibration"] = record = _record(record, "calibration", **kinds)
        kinds = {"file": "text", "sha256": "text"}
        items = record["list"] or []
        record["list"] = [_record(item, "calibration.list", **kinds) for item in items]
    return full


def _row(row: Any, where: str, num_classes: int) -> dict[str, Any]:
    full = _record(row, where, **_ROW_KINDS)
    _require(bool(full["form"]), full["form"], f"{where}.form", "a name")
    for key in ("iou", "acc"):
        values = [None] * num_classes if full[key] is None else full[key]
        fits = len(values) == num_classes
        fits &= all(value is None or _KINDS["number"](value) for value in values)
        _require(fits, values, f"{where}.{key}", f"{num_classes} numbers or nulls, one per class")
    return full


def _record(value: Any, where: str, **kinds: str) -> dict[str, Any]:
    """`value` with all keys of `kinds`, which are None where missing; BundleError on a misfit."""
    _require(isinstance(value, dict), value, where, "an object")
    for key, kind in kinds.items():
        item = value.get(key)
        article = "an" if kind == "object" else "a"
        fits = item is None or _KINDS[kind](item)
        _require(fits, item, f"{where}.{key}", f"{article} {kind} or null")
    return {**dict.fromkeys(kinds), **value}


def _is_rgb(colour: Any) -> bool:
    if not isinstance(colour, list) or len(colour) != 3:
        return False
    return all(type(part) is int and 0 <= part <= 255 for part in colour)


def _require(fits: bool, value: Any, where: str, expected: str) -> None:
    if not fits:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise BundleError(
            f"{shown} as {where} of a report", expected=expected, do="evaluate the model again"
        )


def _write_text(path: Path, text: str) -> None:
    """Writes UTF-8 beside `path` and renames; file names that are no UTF-8 become escapes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{error.strerror or error} at {path}",
            expected="a folder that can be written to",
            do="make room there or choose another folder",
        ) from error
