"""Label PNGs and overlays for a folder of images or scenes, from a bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engines.bundle import Bundle, bundle_from_folder
from engines.bundle_runtime import Wish, open_bundle
from engines.errors import ImageError, output_error
from engines.progress import Progress
from engines.segmenter import Segmenter
from exporter.picture_file import write_picture
from exporter.segment_inputs import (
    SegmentItem,
    bands_from,
    check_fused,
    items_from,
    picture_from,
)
from exporter.strips import UNNAMED_RGB, overlay


@dataclass(frozen=True)
class SegmentOptions:
    """`alpha` is the weight of the colours in the overlay; None writes no overlay.

    `precision`, `runtime`, `mode`, `threads` and `fused` are those of `Segmenter.open`.
    """

    precision: str | None = None
    runtime: str = "auto"
    mode: str = "whole"
    alpha: float | None = 0.5
    skip_bad: bool = False
    convert_images: bool = False
    threads: int | None = None
    fused: bool = False


def segment_images(
    bundle: Path,
    images: Path,
    out: Path,
    options: SegmentOptions,
    progress: Progress,
) -> tuple[int, list[str]]:
    """Write out/labels/NAME.png and out/overlays/NAME.jpg; returns (written, left out).

    `images` is what `items_from` takes. Labels are palette PNGs whose pixel values are the class
    indices, at the image's own size. What was left out are files that belong to no scene, and with
    `skip_bad` what could not be read. Raises BundleError, ImageError (without `skip_bad`) or
    OutputError, and ConfigError for what `fused` does not go with.
    """
    found = bundle_from_folder(bundle)
    items, left_out = items_to_segment(images, found, options)
    skipped = list(left_out)
    written = 0
    with (
        opened_segmenter(bundle, found, options, progress) as segmenter,
        progress.stage("segment"),
        folders_in(out, options),
    ):
        for done, item in enumerate(items, start=1):
            try:
                segment_one(segmenter, item, out, options)
                written += 1
            except ImageError as error:
                if not options.skip_bad:
                    raise
                skipped.append(f"{item.title}: {error}")
            progress.advance(done, len(items))
    return written, skipped


def items_to_segment(
    images: Path, bundle: Bundle, options: SegmentOptions
) -> tuple[tuple[SegmentItem, ...], tuple[str, ...]]:
    """What `items_from` finds; ConfigError, too, for what `fused` does not go with."""
    items, left_out = items_from(images, bundle)
    if options.fused:
        check_fused(items, bundle, options.mode)
    return items, left_out


def segment_one(
    segmenter: Segmenter, item: SegmentItem, out: Path, options: SegmentOptions
) -> None:
    """Read one image or scene and write its labels and overlay, each in one step.

    It needs `folders_in`. Raises ImageError for what cannot be read, and OutputError.
    """
    given = (
        bands_from(item, segmenter.bundle)
        if options.fused
        else picture_from(item, segmenter, convert=options.convert_images)
    )
    labels = segmenter(given)
    write_picture(_palette_image(labels, segmenter.palette), out / "labels" / f"{item.name}.png")
    if options.alpha is not None:
        image = segmenter.image(given)
        drawn = overlay(image, labels, segmenter.palette, options.alpha)
        write_picture(Image.fromarray(drawn), out / "overlays" / f"{item.name}.jpg")


def opened_segmenter(
    folder: Path, bundle: Bundle, options: SegmentOptions, progress: Progress
) -> Segmenter:
    """Of the bundle in `folder`; `progress` shows the build of an engine, which takes minutes."""
    wish = Wish(options.precision, options.runtime, threads=options.threads, fused=options.fused)
    with progress.stage("open"):
        opened = open_bundle(folder, bundle, wish, progress=progress)
        segmenter = Segmenter(bundle, opened, options.mode, fused=options.fused)
    progress.note(f"{segmenter.precision} on {segmenter.runtime}")
    return segmenter


@contextlib.contextmanager
def folders_in(out: Path, options: SegmentOptions) -> Iterator[None]:
    """The folders that `segment_one` writes to; OutputError where they cannot be made.

    After an error those are removed again that were made here and that nothing was written into.
    """
    names = ("labels",) if options.alpha is None else ("labels", "overlays")
    folders = (*(out / name for name in names), out, *out.parents)
    made = [folder for folder in folders if not folder.exists()]
    try:
        for name in names:
            _make(out / name)
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(str(folder), error) from error


def _palette_image(
    labels: np.ndarray[Any, Any], palette: Sequence[tuple[int, int, int]]
) -> Image.Image:
    # With fewer colours Pillow packs the indices into fewer bits, and those of unnamed outputs,
    # which have no colour, would come back as others.
    colours = [*palette, *[UNNAMED_RGB] * (256 - len(palette))]
    picture = Image.fromarray(labels)
    picture.putpalette([value for rgb in colours for value in rgb])
    return picture
