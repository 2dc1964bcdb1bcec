"""`riceseg segment`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from engines.bundle_runtime import RUNTIMES
from engines.evaluation.request import MODES
from exporter.commands.field_options import (
    FIELD_EXAMPLES,
    FIELD_SUFFIXES,
    field_options,
    field_values,
    show_field,
)
from exporter.commands.options import PATH, Number, image_options, ray_option
from exporter.live import progress_for

EXAMPLES = """
\b
Examples:
  riceseg segment build/segformer-b0 photos/ --out masks/
  riceseg segment build/segformer-b0 one.jpg --out masks/ --precision int8
  riceseg segment build/rice scenes/ --out masks/  # one TIFF for each band
"""


@click.command(epilog=EXAMPLES + FIELD_EXAMPLES)
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option(
    "--out",
    type=PATH,
    required=True,
    help="Folder for labels/ and overlays/, or NAME.tif for one field of any size.",
)
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
    "--fused",
    is_flag=True,
    help="Give the bands to the graphs of export --fuse-bands, which compose by themselves.",
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
@ray_option
@field_options
def segment(
    bundle: Path,
    images: Path,
    out: Path,
    alpha: float,
    overlay: bool,
    ray: str | None,
    **values: Any,
) -> None:
    """Write a label PNG (palette of the bundle) and an overlay for every image or scene.

    With --out NAME.tif: the labels of one field of any size, its areas and an overview.
    """
    is_field = out.suffix.lower() in FIELD_SUFFIXES
    of_field = field_values(values, out, is_field=is_field)
    if is_field:
        chosen = {name: values[name] for name in ("precision", "runtime")}
        alpha_or_none = alpha if of_field.pop("overview") else None
        _segment_field(bundle, images, out, alpha=alpha_or_none, **chosen, **of_field)
        return
    from exporter.segmentation import SegmentOptions, segment_images

    options = SegmentOptions(alpha=alpha if overlay else None, **values)
    progress = progress_for(sys.stderr)
    if ray is None:
        written, skipped = segment_images(bundle, images, out, options, progress)
    else:
        from exporter.cluster.scenes import segment_on_ray

        written, skipped = segment_on_ray(ray, bundle, images, out, options, progress)
    for line in skipped:
        progress.warn(f"left out {line}")
    click.echo(f"{written} images: {out / 'labels'}" + (f", {out / 'overlays'}" if overlay else ""))


def _segment_field(
    bundle: Path, source: Path, out: Path, *, overlap: float, resume: bool, **values: Any
) -> None:
    from engines.field.run import FieldOptions
    from exporter.field_segmentation import FieldRequest, segment_field_to_files

    options = FieldOptions(
        overlap=overlap,
        indexes=values.pop("indexes"),
        nodata=values.pop("nodata"),
        resume=resume,
    )
    request = FieldRequest(bundle, source, out, options=options, **values)
    show_field(segment_field_to_files(request, progress_for(sys.stderr)))
