"""Label PNGs and overlays for a folder of images, from a bundle."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engines.bundle import bundle_from_folder
from engines.bundle_runtime import Wish, open_bundle
from engines.errors import ImageError, OutputError
from engines.images import image_files_from, image_from_file
from engines.progress import Progress
from engines.segmenter import Segmenter
from exporter.strips import UNNAMED_RGB, overlay


@dataclass(frozen=True)
class SegmentOptions:
    """`alpha` is the weight of the colours in the overlay; None writes no overlay.

    `precision`, `runtime` and `mode` are those of `Segmenter.open`.
    """

    precision: str | None = None
    runtime: str = "auto"
    mode: str = "whole"
    alpha: float | None = 0.5
    skip_bad: bool = False
    convert_images: bool = False


def segment_images(
    bundle: Path,
    images: Path,
    out: Path,
    options: SegmentOptions,
    progress: Progress,
) -> tuple[int, list[str]]:
    """Write out/labels/NAME.png and out/overlays/NAME.jpg; returns (written, left out).

    Labels are palette PNGs whose pixel values are the class indices, at the image's own size.
    Raises BundleError, ImageError (without `skip_bad`) or OutputError.
    """
    files = image_files_from(images)
    names = _output_names(files)
    folders = [out / "labels"] + ([out / "overlays"] if options.alpha is not None else [])
    skipped: list[str] = []
    with _opened(bundle, options, progress) as segmenter, progress.stage("segment"):
        _make(folders)
        for done, (path, name) in enumerate(zip(files, names, strict=True), start=1):
            try:
                image = image_from_file(
                    path,
                    channels=segmenter.bundle.input.channels,
                    convert=options.convert_images,
                )
            except ImageError as error:
                if not options.skip_bad:
                    raise
                skipped.append(f"{path.name}: {error}")
            else:
                labels = segmenter(image)
                _save(_palette_image(labels, segmenter.palette), out / "labels" / f"{name}.png")
                if options.alpha is not None:
                    drawn = overlay(image, labels, segmenter.palette, options.alpha)
                    _save(Image.fromarray(drawn), out / "overlays" / f"{name}.jpg")
            progress.advance(done, len(files))
    return len(files) - len(skipped), skipped


def _opened(folder: Path, options: SegmentOptions, progress: Progress) -> Segmenter:
    """The bundle's segmenter; `progress` shows the build of an engine, which takes minutes."""
    bundle = bundle_from_folder(folder)
    wish = Wish(precision=options.precision, runtime=options.runtime)
    with progress.stage("open"):
        opened = open_bundle(folder, bundle, wish, progress=progress)
        segmenter = Segmenter(bundle, opened, options.mode)
    progress.note(f"{segmenter.precision} on {segmenter.runtime}")
    return segmenter


def _output_names(files: Sequence[Path]) -> list[str]:
    """The stem; the whole name where images share it (a.jpg and a.png).

    A list may name several folders: where the whole name comes again it is numbered.
    """
    stems = Counter(path.stem for path in files)
    names: dict[str, None] = {}
    for path in files:
        name = path.stem if stems[path.stem] == 1 else path.name
        numbered = (f"{path.name}_{number}" for number in itertools.count(2))
        names[next(n for n in itertools.chain([name], numbered) if n not in names)] = None
    return list(names)


def _make(folders: Sequence[Path]) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder}: {error.strerror}",
                expected="a folder that can be written to",
                do="choose another --out",
            ) from error


def _palette_image(
    labels: np.ndarray[Any, Any], palette: Sequence[tuple[int, int, int]]
) -> Image.Image:
    # With fewer colours Pillow packs the indices into fewer bits, and those of unnamed outputs,
    # which have no colour, would come back as others.
    colours = [*palette, *[UNNAMED_RGB] * (256 - len(palette))]
    picture = Image.fromarray(labels)
    picture.putpalette([value for rgb in colours for value in rgb])
    return picture


def _save(picture: Image.Image, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        picture.save(temporary, format="PNG" if path.suffix == ".png" else "JPEG")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path}: {error.strerror or error}",
            expected="room and leave to write",
            do="free some space or choose another --out",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
