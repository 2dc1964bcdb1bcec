"""Reports of several devices on one page: comparison.json, comparison.md and comparison.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.reports.merge import detail_columns, merged_columns, write_merged
from engines.reports.report import write_text
from exporter.report_page import page_environment

TEMPLATE = "comparison.html.jinja"


def write_comparison(merged: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes what `engines.reports.merge.merged_report` made; returns the three paths.

    The page is self-contained, without scripts or network. Raises OutputError if a file cannot be
    written.
    """
    html = html_from_merged(merged)
    page = folder / "comparison.html"
    paths = write_merged(merged, folder)
    write_text(page, html)
    return [*paths, page]


def html_from_merged(merged: Mapping[str, Any]) -> str:
    rows = _labelled(merged)
    scored = [row for row in rows if any(value is not None for value in row["iou"] or [])]
    sections = [
        (group, [row for row in rows if row["group"] == i])
        for i, group in enumerate(merged["groups"])
    ]
    power = dict.fromkeys(
        f"{row['label']}: {row['power_source']}" for row in rows if row["power_source"]
    )
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            merged=merged,
            sections=sections,
            columns=merged_columns(merged),
            details=detail_columns(merged),
            fastest=max((row["fps"] or 0.0 for row in rows), default=0.0) or 1.0,
            classes=_classes(merged, scored),
            scored=scored,
            sources=list(power),
        )
    )


def _labelled(merged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with their report's label and source, and whether their group has more reports."""
    reports = merged["reports"]
    members: list[set[int]] = [set() for _ in merged["groups"]]
    for row in merged["rows"]:
        members[row["group"]].add(row["report"])
    return [
        {
            **row,
            "label": reports[row["report"]]["label"],
            "source": reports[row["report"]]["source"],
            "shared": len(members[row["group"]]) > 1,
        }
        for row in merged["rows"]
    ]


def _classes(
    merged: Mapping[str, Any], scored: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Colour and the IoU in each scored row, per class; none if nothing was scored."""
    if not scored:
        return []
    return [
        {
            "name": name,
            "colour": f"rgb({rgb[0]},{rgb[1]},{rgb[2]})",
            "ious": [row["iou"][i] for row in scored],
        }
        for i, (name, rgb) in enumerate(zip(merged["classes"], merged["palette"], strict=True))
    ]
