"""`riceseg sensitivity`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from engines.progress import printable
from exporter.commands.options import PATH, data_options, data_options_from, val_options
from exporter.commands.show import table_console
from exporter.live import progress_for

EXAMPLES = """
\b
Examples:
  riceseg sensitivity build/best --calib data/train --val data/val
  riceseg sensitivity build/best --calib data --val data --images 16
  riceseg sensitivity build/best --calib data --json cost.json --out cost.html


Each group of layers runs in INT8 by itself, the rest in FP32. Without --val no
mIoU is measured. The result goes into the bundle: sensitivity.json, and a part
of its report. With --json or --out it goes there and the bundle stays as it is.
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=PATH)
@click.option(
    "--calib",
    type=PATH,
    required=True,
    help="Images to calibrate on: folder, list file or data set.",
)
@val_options
@click.option(
    "--images",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="At most so many of --calib and of --val, evenly spread.",
)
@click.option("--json", "json_path", type=PATH, help="Write the record here.")
@click.option("--out", "page", type=PATH, help="Write a page (.html) here.")
@data_options
def sensitivity(bundle: Path, json_path: Path | None, page: Path | None, **values: Any) -> None:
    """Show what INT8 costs in each group of layers of a BUNDLE."""
    from engines.reports.report import check_file_writable, check_writable
    from exporter.int8_tables import sensitivity_table
    from exporter.sensitivity import sensitivity_of_bundle
    from exporter.sensitivity_report import (
        check_apart,
        check_report,
        section_of,
        write_elsewhere,
        write_into_bundle,
    )

    data = data_options_from(
        values, calib=values["calib"], val=values["val"], val_masks=values["val_masks"]
    )
    elsewhere = [path for path in (json_path, page) if path is not None]
    check_apart(elsewhere, bundle)
    for path in elsewhere:
        check_file_writable(path)
    if not elsewhere:
        check_report(bundle)
        check_writable(bundle)
    document = sensitivity_of_bundle(
        bundle, data, most_images=values["images"], progress=progress_for(sys.stderr)
    )
    if elsewhere:
        write_elsewhere(document, json_path=json_path, page=page)
    else:
        page = write_into_bundle(document, bundle)
    table_console().print(sensitivity_table(section_of(document)))
    if page is not None:
        click.echo(f"report: {printable(str(page))}")
