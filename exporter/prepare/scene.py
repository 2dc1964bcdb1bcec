"""One raw scene becomes its composites and its mask: the unit of parallel work.

Everything here can be pickled, so that processes of this or other machines do it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.bands.composite import composite_planes
from engines.bands.files import bands_from_files
from engines.bands.recipe import LETTERS, BandRecipe
from engines.bands.tiff import BandBytes, BandFile
from engines.errors import (
    DatasetError,
    MissingPackageError,
    OutputError,
    UserError,
    output_error,
)
from exporter.prepare.checksum import crc32
from exporter.prepare.labels_json import CLASS_OF_CODE, SceneLabels, scene_labels_from_json
from exporter.prepare.masks import mask_from_polygons
from exporter.prepare.png import image_of_planes, png_of_composite, png_of_mask
from exporter.prepare.raw_layout import RawScene
from exporter.prepare.rice_classes import PALETTE, RICE_CLASSES

if TYPE_CHECKING:
    from engines.resize import Image, Labels

MASK_SUFFIX = ".png"
TEMPORARY_SUFFIX = ".part"
GO_ON = "choose another --out; the same command goes on where it stopped"

Stamp = tuple[Any, ...]


@dataclass(frozen=True)
class SceneSettings:
    """How scenes become files; `out` is the data set's folder, `staging` where files are put.

    `suffix` is that of the composites and decides their format: .png, .npy or .tif.
    """

    recipes: tuple[BandRecipe, ...]
    suffix: str
    out: Path
    staging: Path

    @property
    def letters(self) -> str:
        """The bands that are needed: those of one recipe in its order, of several R, G, B, N, E."""
        if len(self.recipes) == 1:
            return self.recipes[0].letters
        wanted = {letter for recipe in self.recipes for letter in recipe.letters}
        return "".join(letter for letter in LETTERS if letter in wanted)

    @functools.cached_property
    def folders(self) -> tuple[tuple[Path, Path], ...]:
        """Where a scene's files are put: for each recipe the folders of its images and masks."""
        roots = [self.staging / str(index) for index in range(len(self.recipes))]
        return tuple((root / "images", root / "masks") for root in roots)

    @functools.cached_property
    def places(self) -> dict[Path, str]:
        """Of those folders, below `out`."""
        every = (folder for pair in self.folders for folder in pair)
        return {folder: folder.relative_to(self.out).as_posix() for folder in every}


@dataclass(frozen=True)
class WrittenFile:
    """A file of a scene: its place below the data set's folder, and what is in it."""

    place: str
    size: int
    crc32: int


@dataclass(frozen=True)
class FinishedScene:
    """`files` are a composite and a mask for each recipe in turn.

    `stamps` are those of the files that it was made of, `pixels` the mask's by class, `part` is
    that of the split, "" before it.
    """

    name: str
    stamps: tuple[Stamp, ...]
    files: tuple[WrittenFile, ...]
    pixels: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    part: str = ""
    reused: bool = False

    @property
    def classes(self) -> frozenset[int]:
        """Those present in the mask."""
        return frozenset(index for index, count in enumerate(self.pixels) if count)


@dataclass(frozen=True)
class FailedScene:
    """A scene that cannot be used, and why; with `stop` none can be: nothing can be written."""

    name: str
    error: UserError
    stop: bool = False


def scene_that_kills(name: str, died: str) -> FailedScene:
    """A scene of which whoever did it died; `died` says how, after its name."""
    error = DatasetError(
        f"scene {name}, {died}",
        expected="a scene that memory suffices for",
        do="look at the size of its files, or leave it out",
    )
    return FailedScene(name, error)


Outcome = FinishedScene | FailedScene


@dataclass(frozen=True)
class SceneTask:
    """`known` is what an earlier run made of the scene, if it did."""

    scene: RawScene
    known: FinishedScene | None = None


def prepare_scene(task: SceneTask, settings: SceneSettings) -> Outcome:
    """Write the scene's files into the staging folder, unless they are known and still right.

    They appear whole under their names or not at all; doing it twice gives the same files. What is
    wrong with the scene, or with the place, is returned, not raised. `reused` tells that files and
    sources are those of `known`, whose files are read for that.
    """
    name = task.scene.name
    try:
        stamps = stamps_of_scene(task.scene, settings.letters)
        if task.known is not None and task.known.stamps == stamps:
            found = _found(task.known, settings)
            if found is not None:
                return found
        finished = _made(task.scene, stamps, settings)
    except (OutputError, MissingPackageError) as error:
        return FailedScene(name, error, stop=True)
    except UserError as error:
        return FailedScene(name, error)
    return replace(finished, part=task.known.part) if task.known is not None else finished


def stamps_of_scene(scene: RawScene, letters: str) -> tuple[Stamp, ...]:
    """Of the files that are read; where a band or the labels are missing, ()."""
    wanted = [*(scene.bands.get(letter) for letter in letters), scene.labels]
    return tuple(() if ref is None else tuple(ref.stamp()) for ref in wanted)


def composites_from_bands(bands: Any, settings: SceneSettings) -> Iterator[Image]:
    """(C, H, W) uint8 for each recipe; `bands` (H, W, B) in the order of `settings.letters`.

    A band is stretched by its own values alone, so once is enough for all recipes.
    """
    first = settings.recipes[0]
    if len(settings.recipes) == 1:
        yield composite_planes(bands, first)
        return
    every = BandRecipe(settings.letters, first.norm, first.nodata)
    stretched = composite_planes(bands, every)
    for recipe in settings.recipes:
        yield stretched[[every.channels.index(letter) for letter in recipe.channels]]


def _made(scene: RawScene, stamps: tuple[Stamp, ...], settings: SceneSettings) -> FinishedScene:
    labels_file = scene.labels
    if labels_file is None:
        raise _missing(f"scene {scene.name} without labels", "a JSON of its name")
    bands = _bands(scene, settings)
    labels = scene_labels_from_json(labels_file.read(), str(labels_file))
    mask = mask_from_polygons(labels, (bands.shape[0], bands.shape[1]))
    mask_file = png_of_mask(mask, PALETTE)
    files: list[WrittenFile] = []
    composites = composites_from_bands(bands, settings)
    for (images, masks), planes in zip(settings.folders, composites, strict=True):
        data = _composite_file(planes, settings.suffix)
        files.append(_written(images, f"{scene.name}{settings.suffix}", data, settings))
        files.append(_written(masks, f"{scene.name}{MASK_SUFFIX}", mask_file, settings))
    pixels = _pixels_by_class(mask, labels)
    return FinishedScene(scene.name, stamps, tuple(files), pixels, tuple(labels.warnings))


def _bands(scene: RawScene, settings: SceneSettings) -> Any:
    missing = [letter for letter in settings.letters if letter not in scene.bands]
    if missing:
        raise _missing(
            f"scene {scene.name} without band {', '.join(missing)}", "a TIFF of each band"
        )
    files: dict[str, BandFile] = {}
    for letter in settings.letters:
        ref = scene.bands[letter]
        # Of a file in a folder only the pixels are read, straight into the array.
        files[letter] = ref.path if ref.member is None else BandBytes(ref.read(), str(ref))
    return bands_from_files(files, settings.letters, nodata=settings.recipes[0].nodata)


def _missing(got: str, expected: str) -> UserError:
    return DatasetError(got, expected=expected, do="add the file, or leave the scene out")


def _pixels_by_class(mask: Labels, labels: SceneLabels) -> tuple[int, ...]:
    # A fifth of the time of numpy.bincount, which makes 8 bytes of each pixel first.
    pixels = [0] * len(RICE_CLASSES)
    for index in {CLASS_OF_CODE[polygon.code] for polygon in labels.polygons}:
        pixels[index] = int(np.count_nonzero(mask == index))
    pixels[0] = mask.size - sum(pixels)
    return tuple(pixels)


def _composite_file(planes: Image, suffix: str) -> bytes:
    if suffix == ".png":
        return png_of_composite(planes)
    file = io.BytesIO()
    if suffix == ".npy":
        np.save(file, image_of_planes(planes), allow_pickle=False)
        return file.getvalue()
    return _tiff(planes)


def _tiff(planes: Image) -> bytes:
    """RGB where there are three channels, as images are read; else a page for each channel."""
    import PIL.Image

    file = io.BytesIO()
    images = [image_of_planes(planes)] if len(planes) == 3 else planes
    pages = [PIL.Image.fromarray(image) for image in images]
    pages[0].save(
        file, "TIFF", compression="tiff_adobe_deflate", save_all=True, append_images=pages[1:]
    )
    return file.getvalue()


def _written(folder: Path, name: str, data: bytes, settings: SceneSettings) -> WrittenFile:
    write_whole(f"{folder}/{name}", data)
    return WrittenFile(f"{settings.places[folder]}/{name}", len(data), crc32(data))


def write_whole(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """`path` is there with all of `data`, or as it was; OutputError when it cannot be written.

    Runs of other processes may write the same file at the same time.
    """
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        try:
            with open(temporary, "wb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise output_error(folder, error, do=GO_ON) from error


def _found(known: FinishedScene, settings: SceneSettings) -> FinishedScene | None:
    """With the places where its files are, whole; None when one is not.

    A run that was killed while it divided the scenes has left some of them in the staging folder.
    """
    folders = [folder for pair in settings.folders for folder in pair]
    if len(known.files) != len(folders):
        return None
    files: list[WrittenFile] = []
    for file, folder in zip(known.files, folders, strict=True):
        staged = folder / file.place.rpartition("/")[2]
        path = next((p for p in (settings.out / file.place, staged) if _is_whole(p, file)), None)
        if path is None:
            return None
        files.append(replace(file, place=path.relative_to(settings.out).as_posix()))
    return replace(known, files=tuple(files), reused=True)


def _is_whole(path: Path, file: WrittenFile) -> bool:
    try:
        if path.stat().st_size != file.size:
            return False
        return crc32(path.read_bytes()) == file.crc32
    except OSError:
        return False
