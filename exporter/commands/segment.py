"""`riceseg segment`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from engines.bundle_runtime import RUNTIMES
from engines.evaluation.request import MODES
from exporter.commands.options import PATH, Number, image_options
from exporter.live import progress_for

EXAMPLES = """
\b
Examples:
  riceseg segment build/segformer-b0 photos/ --out masks/
  riceseg segment build/segformer-b0 one.jpg --out masks/ --precision int8
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for labels/ and overlays/.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Which graph of the bundle.  [default: the runtime's choice]",
)
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default="auto",
    show_default=True,
    help="auto: TensorRT where it is installed, else ONNX Runtime.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="whole",
    show_default=True,
    help="slide: overlapping windows at the scale of the test pipeline; a bundle with logits.",
)
@click.option(
    "--alpha",
    type=Number(0, 1),
    default=0.5,
    show_default=True,
    help="Weight of the colours in the overlay.",
)
@click.option("--overlay/--no-overlay", default=True, show_default=True)
@image_options
def segment(
    bundle: Path,
    images: Path,
    out: Path,
    alpha: float,
    overlay: bool,
    **values: Any,
) -> None:
    """Write a label PNG (palette of the bundle) and an overlay for every image."""
    from exporter.segmentation import SegmentOptions, segment_images

    options = SegmentOptions(alpha=alpha if overlay else None, **values)
    progress = progress_for(sys.stderr)
    written, skipped = segment_images(bundle, images, out, options, progress)
    for line in skipped:
        progress.warn(f"left out {line}")
    click.echo(f"{written} images: {out / 'labels'}" + (f", {out / 'overlays'}" if overlay else ""))
