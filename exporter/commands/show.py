"""What the commands print on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from engines.progress import printable
from engines.reports.report import checked_report
from exporter.int8_tables import int8_parts
from exporter.live import scores_table
from exporter.pairs import pairs_table

if TYPE_CHECKING:
    from engines.trt.build import BuildRecord

FEWEST_COLUMNS = 80


def table_console() -> Console:
    """Standard output for tables. A narrower terminal wraps them; rich would cut figures out."""
    return Console(width=max(Console().width, FEWEST_COLUMNS))


def show_report(report: Mapping[str, Any], folder: Path | None) -> None:
    """The tables of what was compared, searched and tried, the verdict and where to read on."""
    table_console().print(scores_table(report))
    checked = checked_report(report)
    for part in int8_parts(checked):
        table_console().print(part)
    if checked["pairs"] is not None:
        click.echo()
        table_console().print(pairs_table(checked["pairs"]))
    gate = report["gate"]
    if gate is not None:
        verdict = "passed" if gate["passed"] else "FAILED"
        click.echo(
            f"gate {verdict}: largest loss {gate['drop']:.2f} mIoU points, "
            f"{gate['max_drop']:.2f} allowed"
        )
        if not gate["passed"]:
            for item in gate["lost"][:5]:
                lost = f"{item['class']} {item['drop']:.2f} points of IoU"
                click.echo(f"  lost: {printable(lost)}")
    if folder is not None:
        click.echo(f"report: {folder / 'report.html'}")


def show_engine(record: BuildRecord) -> None:
    """Where an engine is, its size and how long it took."""
    path, log = printable(str(record.path)), printable(str(record.log_path))
    click.echo(f"engine: {path} ({record.engine_bytes / 1e6:.1f} MB, {record.seconds:.0f} s)")
    click.echo(f"  log: {log}")


def show_facts(facts: Mapping[str, object]) -> None:
    """One `name: value` a line; lists are joined, empty values left out."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if value is None or value in ("", (), []):
            continue
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        click.echo(f"{name:<{width}}  {printable(str(value))}")
