"""`riceseg calibrate-set`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from engines.progress import printable
from exporter.commands.options import PATH, image_options
from exporter.commands.show import table_console
from exporter.live import progress_for

if TYPE_CHECKING:
    from calibration.image_set.make import SetRecord

EXAMPLES = """
\b
Examples:
  riceseg calibrate-set data --val data --out calib.txt
  riceseg calibrate-set photos/2025 --out lists/calib.txt --count 128
  riceseg calibrate-set data/images/train --val data --out calib.txt --skip-bad
  riceseg export --checkpoint best.pth --int8 --calib calib.txt --val data

\b
DIR is a data set (its part "calibration" or "train"), a folder of images or a
list. Images are divided by the classes in their masks, where there are masks,
by brightness, contrast and sharpness. Each of these strata gives one image, then
they give more by their size. Copies and near copies are left out, and so is what
shows the same as a validation image, of --val or of DIR itself. Beside NAME.txt
lie NAME.png, the contact sheet, and NAME.json, which says for each image what was
measured. A list for fewer images is the beginning of one for more.
"""


@click.command("calibrate-set", epilog=EXAMPLES)
@click.argument("source", type=PATH, metavar="DIR")
@click.option("--out", type=PATH, required=True, help="The list to write, NAME.txt.")
@click.option(
    "--count", type=click.IntRange(1), default=256, show_default=True, help="How many images."
)
@click.option(
    "--val",
    type=PATH,
    help="Images to validate on, which must not be among them; DIR's own, if it has any.",
)
@click.option("--masks", type=PATH, help="The masks, where they do not lie beside the images.")
@click.option("--classes", type=PATH, help="File of class names, for the table.")
@click.option(
    "--near",
    "near_bits",
    type=click.IntRange(0, 32),
    default=10,
    show_default=True,
    help="Images count as copies when at most so many of the 64 bits of their perceptual hashes"
    " differ.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides between images that are alike."
)
@click.option(
    "--channels",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Of the network; other than 3 for .npy and TIFFs with a page for each alone.",
)
@image_options
@click.option(
    "--reduce-zero-label",
    is_flag=True,
    help="Masks: 0 is ignored, others go down by one (ADE20K).",
)
@click.option("--overwrite", is_flag=True, help="Replace the three files if they exist.")
def calibrate_set(source: Path, classes: Path | None, **values: Any) -> None:
    """Choose images of DIR to calibrate on: all kinds of them, and none twice."""
    from calibration.image_set.facts import Reading
    from calibration.image_set.make import calibration_set
    from calibration.image_set.request import SetRequest
    from exporter.classes import classes_from_file

    names = classes_from_file(classes).names if classes is not None else ()
    reading = Reading(
        channels=values.pop("channels"),
        convert=values.pop("convert_images"),
        reduce_zero_label=values.pop("reduce_zero_label"),
    )
    request = SetRequest(source, class_names=names, classes_file=classes, reading=reading, **values)
    record = calibration_set(request, progress_for(sys.stderr))
    table_console().print(_table(record))
    click.echo(f"{record.chosen} of {record.candidates} images: {_shown(record.files.list)}")
    click.echo(f"contact sheet: {_shown(record.files.sheet)}")
    click.echo(f"coverage: {_shown(record.files.coverage)}")


def _table(record: SetRecord) -> Table:
    """Images with each class and in each part, of those to choose from and of the chosen."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("")
    table.add_column("", overflow="fold")
    for heading in ("to choose from", "", "chosen", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    kind = ""
    for row in record.rows:
        table.add_row(
            row.kind if row.kind != kind else "",
            Text(printable(row.name), "red" if not row.chosen and row.candidates else ""),
            str(row.candidates),
            f"{row.candidates_percent:.1f} %",
            str(row.chosen),
            f"{row.chosen_percent:.1f} %",
        )
        kind = row.kind
    return table


def _shown(path: Path) -> str:
    return printable(str(path))
