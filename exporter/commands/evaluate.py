"""`riceseg evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from exporter.commands.options import (
    PATH,
    Size,
    data_options,
    data_options_from,
    load_options,
    load_options_from,
)
from exporter.commands.show import show_report
from exporter.live import progress_for

EXAMPLES = """
\b
Examples:
  riceseg evaluate build/segformer-b0 --data data/val
  riceseg evaluate best.pth --data data/val --size 512x512
  riceseg evaluate build/best/model.int8.onnx --data data/val --out report
"""


@click.command(epilog=EXAMPLES)
@click.argument("target", type=PATH)
@click.option("--data", "val", type=PATH, required=True, help="Folder of images and masks.")
@click.option("--masks", type=PATH, help="The masks, where they do not lie beside the images.")
@click.option("--size", type=Size(), help="Network input of a checkpoint.")
@click.option("--out", type=PATH, help="Write report.json and report.html into this folder.")
@load_options
@data_options
def evaluate(target: Path, val: Path, masks: Path | None, **values: Any) -> None:
    """Score a BUNDLE, a CHECKPOINT or an ONNX file with mmsegmentation's metric."""
    from exporter.evaluation import evaluate_target
    from exporter.report import write_report

    data = data_options_from(values, calib=None, val=val, val_masks=masks)
    report, strips = evaluate_target(
        target, data, load_options_from(values), size=values["size"],
        progress=progress_for(sys.stderr),
    )  # fmt: skip
    out: Path | None = values["out"]
    if out is not None:
        write_report(report, out, strips=strips)
    show_report(report, out)
