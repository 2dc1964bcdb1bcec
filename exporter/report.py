"""The report of one export: report.json for programs, report.html for people, a table for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.reports.report import (
    NOT_MEASURED,
    checked_report,
    comparison_rows,
    json_text,
    report_from_file,
    rows_with_change,
    table_markdown,
    write_text,
)
from exporter.report_page import html_from_report
from exporter.strips import Panel, Strip, overlay, strip_panels

__all__ = [
    "NOT_MEASURED",
    "Panel",
    "Strip",
    "comparison_rows",
    "overlay",
    "report_from_file",
    "strip_panels",
    "table_markdown",
    "write_report",
]


def write_report(report: Mapping[str, Any], folder: Path, *, strips: Sequence[Strip] = ()) -> None:
    """Writes report.json and a self-contained report.html into `folder`, which is made if needed.

    NaN and infinity become null, missing optional fields are filled in, the first 12 strips are
    shown. Raises BundleError if `report` does not fit the format, OutputError if a file cannot be
    written; what was there before then stays.
    """
    document = checked_report(report)
    html = html_from_report(document, rows_with_change(document), strips)
    write_text(folder / "report.json", json_text(document))
    write_text(folder / "report.html", html)
