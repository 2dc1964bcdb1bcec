"""`riceseg report`."""

from __future__ import annotations

from pathlib import Path

import click

from engines.progress import printable
from exporter.commands.options import PATH

EXAMPLES = """
\b
Examples:
  riceseg report build/segformer-b0 orin-nano.json
  riceseg report workstation/report.json orin/report.json rtx/report.json --out comparison
"""


@click.command(epilog=EXAMPLES)
@click.argument("reports", type=PATH, nargs=-1, required=True)
@click.option(
    "--out", type=PATH, help="Write comparison.json, comparison.md and comparison.html here."
)
def report(reports: tuple[Path, ...], out: Path | None) -> None:
    """Merge REPORTS of several devices into one table.

    Each is a report.json or a folder with one. Figures that should not be compared as they are
    (another power mode, model, image size, ...) are named above the table.
    """
    from engines.reports.merge import merged_markdown, merged_report, reports_from_paths
    from exporter.comparison import write_comparison

    found, sources = reports_from_paths(reports)
    merged = merged_report(found, sources=sources)
    if out is not None:
        page = write_comparison(merged, out)[-1]
    click.echo(merged_markdown(merged, shown=printable), nl=False)
    if out is not None:
        click.echo(f"\ncomparison: {printable(str(page))}")
