"""`riceseg models`."""

from __future__ import annotations

import dataclasses
import json

import click
from rich.table import Table

from exporter.commands.show import table_console
from exporter.zoo import ZOO


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def models(as_json: bool) -> None:
    """List the architectures and the published weights (mIoU as their authors report it)."""
    if as_json:
        entries = [dataclasses.asdict(entry) for entry in ZOO]
        click.echo(json.dumps(entries, ensure_ascii=False, indent=2))
        return
    headings = ("model", "data set", "size", "test", "mIoU", "ms+flip", "M par.", "weights")
    table = Table(*headings, box=None, pad_edge=False)
    for entry in ZOO:
        table.add_row(
            entry.model,
            entry.dataset,
            f"{entry.crop_hw[0]}x{entry.crop_hw[1]}",
            entry.test_mode,
            _cell(entry.miou),
            _cell(entry.miou_ms_flip),
            _cell(entry.parameters_m, 1),
            "published" if entry.url else "not public",
        )
    table_console().print(table)


def _cell(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
