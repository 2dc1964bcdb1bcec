"""What `riceseg segment` is given: image files, arrays of bands, or scenes of one file a band."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from engines.bands.composite import limits_of_bands
from engines.bands.files import (
    SceneFiles,
    bands_from_files,
    scene_of_band_file,
    scenes_in_folder,
)
from engines.bands.names import TIFF_SUFFIXES, is_band_name
from engines.bands.recipe import BandRecipe
from engines.bundle import Bundle
from engines.decoding import MAX_PIXELS
from engines.errors import ConfigError, ImageError, InputError, UserError
from engines.fused_graphs import bands_shape
from engines.images import (
    IMAGE_SUFFIXES,
    array_in_npy,
    files_in_folder,
    image_files_from,
    image_from_file,
)
from engines.segmenter import Segmenter

Picture: TypeAlias = "np.ndarray[Any, Any]"  # (H, W, C) uint8
Bands: TypeAlias = "np.ndarray[Any, Any]"  # (H, W, B) float32 or uint16


@dataclass(frozen=True)
class SegmentItem:
    """One picture to segment: the name of its outputs, and its file or its bands' files by letter.

    It can be pickled, as work for another process.
    """

    name: str
    source: Path | dict[str, Path]

    @property
    def title(self) -> str:
        """What a message calls it."""
        return self.source.name if isinstance(self.source, Path) else f"scene {self.name}"


def items_from(images: Path, bundle: Bundle) -> tuple[tuple[SegmentItem, ...], tuple[str, ...]]:
    """What `images` holds for this bundle, not opened, and lines about files that were left out.

    With a bundle that has bands a folder with band files gives its scenes, a band file its scene.
    Everything else gives images, as `engines.images.image_files_from` finds them, whose ImageError
    is raised where there is nothing.
    """
    if bundle.bands is not None:
        scenes, left_out = _scenes_from(images, bundle.bands.letters)
        if scenes:
            items = tuple(SegmentItem(scene.name, dict(scene.files)) for scene in scenes)
            return items, left_out
    files = image_files_from(images)
    named = zip(_output_names(files), files, strict=True)
    return tuple(SegmentItem(name, file) for name, file in named), ()


def picture_from(item: SegmentItem, segmenter: Segmenter, *, convert: bool = False) -> Picture:
    """The image (H, W, C) uint8 that the network is shown, at its own size; bands are composed.

    Raises ImageError, which names the scene, for what cannot be read or composed.
    """
    source, bundle = item.source, segmenter.bundle
    if isinstance(source, Path) and not (bundle.bands and _is_array(source)):
        return _image(source, bundle, convert=convert)
    try:
        if isinstance(source, Path):
            return segmenter.image(_array_from_npy(source, bundle.input.channels))
        return segmenter.image(source)
    except (ImageError, InputError) as error:
        raise _of_item(item, error) from error


def check_fused(items: Iterable[SegmentItem], bundle: Bundle, mode: str) -> None:
    """ConfigError where graphs that take bands do not go with the bundle, the items or the mode."""
    bands_shape(bundle)
    if mode != "whole":
        raise ConfigError(
            f"--mode {mode} with --fused",
            expected="one of them: each window would be stretched by its own limits",
            do="leave one of them out",
        )
    if not any(_may_be_bands(item) for item in items):
        raise ConfigError(
            "--fused for images",
            expected="scenes of a TIFF for each band, or .npy files of bands",
            do="leave --fused out",
        )


def bands_from(item: SegmentItem, bundle: Bundle) -> Bands:
    """What a graph that composes by itself is given: (h, w, B) of the size that it was made for.

    Raises ImageError, which names the scene, for what `picture_from` refuses, also what no graph
    can: a band that is all nodata or constant; for images, and for scenes of another size.
    """
    assert bundle.bands is not None  # asked by `check_fused`
    (height, width), _ = bands_shape(bundle)
    recipe = bundle.bands.recipe
    try:
        bands = _bands_of(item.source, recipe)
        if bands.shape[:2] != (height, width):
            raise ImageError(
                f"{bands.shape[1]}x{bands.shape[0]} pixels with --fused",
                expected=f"{width}x{height}, the size that these graphs compose at",
                do="leave --fused out",
            )
        limits_of_bands(bands, recipe)
    except ImageError as error:
        raise _of_item(item, error) from error
    return bands


def _bands_of(source: Path | dict[str, Path], recipe: BandRecipe) -> Bands:
    if not isinstance(source, Path):
        return bands_from_files(source, recipe.letters, nodata=recipe.nodata)
    if _is_array(source):
        bands = _array_from_npy(source, len(recipe.letters))
        if bands.dtype.itemsize > 1:
            return bands
    raise ImageError(
        "an image with --fused",
        expected="a scene of a TIFF for each band, or a .npy of bands",
        do="leave --fused out",
    )


def _may_be_bands(item: SegmentItem) -> bool:
    return not isinstance(item.source, Path) or _is_array(item.source)


def _of_item(item: SegmentItem, error: UserError) -> ImageError:
    return ImageError(f"{item.title}: {error.got}", expected=error.expected, do=error.do)


def _image(path: Path, bundle: Bundle, *, convert: bool) -> Picture:
    try:
        return image_from_file(path, channels=bundle.input.channels, convert=convert)
    except ImageError as error:
        if bundle.bands is not None or not is_band_name(path.name):
            raise
        raise ImageError(
            f"{error.got}, named like a band of a scene",
            expected=error.expected,
            do="export the model with --bands, for example --bands GNE, so that the bundle knows "
            "how to compose it",
        ) from error


def _scenes_from(path: Path, letters: str) -> tuple[Sequence[SceneFiles], tuple[str, ...]]:
    """Scenes, and files that belong to none; neither where nothing looks like band files.

    A composite may be named like its scene, which is named like band R: one file is no scene.
    """
    if path.is_file() and is_band_name(path.name):
        scene = scene_of_band_file(path)
        return ((scene,), ()) if len(scene.files) > 1 or len(letters) == 1 else ((), ())
    if path.is_dir():
        scenes, left_out = scenes_in_folder(path)
        if len(letters) > 1 and not any(len(scene.files) > 1 for scene in scenes):
            return (), ()
        others = files_in_folder(path, [s for s in IMAGE_SUFFIXES if s not in TIFF_SUFFIXES])
        lines = (f"{other.name}: no band file, in a folder of band files" for other in others)
        return scenes, (*left_out, *lines)
    return (), ()


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _array_from_npy(path: Path, count: int) -> Picture:
    """(H, W, count): uint8 is an image, wider integers and floats are bands."""
    stored = array_in_npy(path)
    shape: tuple[int, ...] = stored.shape
    fits = len(shape) == 3 and shape[2] == count and 0 < shape[0] * shape[1] <= MAX_PIXELS
    if not fits or stored.dtype.kind not in "fiu":
        raise ImageError(
            f"{str(path)!r} of {stored.dtype} with shape {shape}",
            expected=f"numbers with shape (height, width, {count})",
            do="save the bands in the order of the bundle's letters, the last axis over bands",
        )
    return np.array(stored, subok=False)


def _output_names(files: Iterable[Path]) -> list[str]:
    """The stem; the whole name where images share it (a.jpg and a.png).

    A list may name several folders: where the whole name comes again it is numbered.
    """
    files = list(files)
    stems = Counter(path.stem for path in files)
    names: dict[str, None] = {}
    for path in files:
        name = path.stem if stems[path.stem] == 1 else path.name
        numbered = (f"{path.name}_{number}" for number in itertools.count(2))
        names[next(n for n in itertools.chain([name], numbered) if n not in names)] = None
    return list(names)
