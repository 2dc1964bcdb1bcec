"""`riceseg evaluate`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from engines.evaluation.preparation import TTA
from engines.evaluation.request import MODES
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

_INFERENCE = ("mode", "tta", "crop", "stride", "scale")
EXAMPLES = """
\b
Examples:
  riceseg evaluate build/segformer-b0 --data data/val
  riceseg evaluate best.pth --data data/val --size 512x512
  riceseg evaluate build/best/model.int8.onnx --data data/val --out report
  riceseg evaluate best.pth --data data/val --mode slide --tta ms+flip
  riceseg evaluate build/best --data data/val --pairs normal
"""


@click.command(epilog=EXAMPLES)
@click.argument("target", type=PATH)
@click.option("--data", "val", type=PATH, required=True, help="Folder of images and masks.")
@click.option("--masks", type=PATH, help="The masks, where they do not lie beside the images.")
@click.option("--size", type=Size(), help="Network input of a checkpoint.")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="whole",
    show_default=True,
    help="slide: overlapping windows, logits averaged. Images are brought to the scale"
    " of the test pipeline first, as mmsegmentation does, then cut.",
)
@click.option(
    "--tta",
    type=click.Choice(TTA),
    default="none",
    show_default=True,
    help="Test-time augmentation: the mirror image, 0.5 to 1.75 times the scale, or both"
    " (12 predictions an image, together 17 times its pixels); softmax averaged.",
)
@click.option("--crop", type=Size(), help="Windows of --mode slide.  [default: as recorded]")
@click.option(
    "--stride", type=Size(), help="Their distance.  [default: as recorded, or two thirds of them]"
)
@click.option(
    "--scale",
    type=Size(),
    help="What images are brought to first, ratio kept, for --mode slide and --tta ms."
    "  [default: as recorded, else their own size]",
)
@click.option(
    "--pairs",
    multiple=True,
    metavar="CLASS",
    help="Also this class against each of the others by mean accuracy: normal against every"
    " disorder. May be given several times.",
)
@click.option("--out", type=PATH, help="Write report.json and report.html into this folder.")
@load_options
@data_options
def evaluate(target: Path, val: Path, masks: Path | None, **values: Any) -> None:
    """Score a BUNDLE, a CHECKPOINT or an ONNX file with mmsegmentation's metric.

    A graph has one size: --tta ms needs --mode slide with it, and windows and augmentation need a
    graph with logits (riceseg export --output both). A checkpoint runs at every size.
    """
    from exporter.evaluation import evaluate_target
    from exporter.inference import Inference
    from exporter.report import write_report

    data = data_options_from(values, calib=None, val=val, val_masks=masks)
    data = replace(data, pairs=values["pairs"])
    inference = Inference(**{name: values[name] for name in _INFERENCE})
    report, strips = evaluate_target(
        target, data, load_options_from(values), size=values["size"], inference=inference,
        progress=progress_for(sys.stderr),
    )  # fmt: skip
    out: Path | None = values["out"]
    if out is not None:
        write_report(report, out, strips=strips)
    show_report(report, out)
