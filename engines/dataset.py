"""Which mask belongs to which image: the usual folder layouts, without a configuration file.

ROOT/images/validation/   ROOT/masks/validation/    also "annotations" or "labels" for "masks",
                                                    "val" for "validation", and "train" or
                                                    "training" for "calibration"
ROOT/images/              ROOT/masks/               where images are not divided
ROOT/img_dir/val/         ROOT/ann_dir/val/         mmsegmentation
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple, Union

from engines.errors import DatasetError
from engines.images import IMAGE_SUFFIXES, files_in_folder, image_files_from

MASK_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")

_MASK_ROOTS = {"images": ("masks", "annotations", "labels"), "img_dir": ("ann_dir",)}
_PART_NAMES = {
    "validation": ("validation", "val"),
    "val": ("val", "validation"),
    "calibration": ("calibration", "train", "training"),
    "train": ("train", "training"),
}


@dataclass(frozen=True)
class Pair:
    """An image and the mask that holds its class indices."""

    image: Path
    mask: Path


def pairs_from_folder(
    folder: Union[str, os.PathLike[str]],
    *,
    part: str = "validation",
    masks: Optional[Union[str, os.PathLike[str]]] = None,
) -> Tuple[Pair, ...]:
    """Every image with its mask of the same name (but for the suffix), sorted by name, not opened.

    `folder` is the root of a layout above, or a folder of images inside one (then `part` is not
    used). `masks` names the folder of masks where it lies elsewhere. Raises DatasetError when an
    image or a mask is alone, a name occurs twice, or there is none.
    """
    root = _existing_folder(folder)
    images = _part_folder(root, part)
    if masks is not None:
        return _matched(images or root, _existing_folder(masks))
    found = _parallel_masks(images, root, part) if images else _masks_beside(root)
    if found is None:
        tried = ", ".join(f"{key}/ + {value[0]}/" for key, value in _MASK_ROOTS.items())
        raise DatasetError(
            f"folder {str(root)!r}, in which "
            + (f"{images.name!r} has no masks" if images else f"{part!r} was not found"),
            expected=f"images and masks side by side ({tried}), with or without a part like "
            f"{' or '.join(_part_names(part))}",
            do="arrange them so, or name the folder of masks (--masks, of export --val-masks)",
        )
    return _matched(images or root, found)


def calibration_images_from(path: Union[str, os.PathLike[str]]) -> Tuple[Path, ...]:
    """Images to calibrate on, not opened, of a dataset's calibration or train part, folder or list.

    A dataset that is not divided gives all of its images. Raises DatasetError for a dataset with
    other parts only, ImageError as `image_files_from` does.
    """
    root = Path(path)
    if not os.path.isdir(root):
        return image_files_from(root)
    images = _part_folder(root, "calibration")
    if images is not None:
        return image_files_from(images)
    if any(os.path.isdir(root / name) for name in _MASK_ROOTS) and not _has_images(root):
        raise DatasetError(
            f"dataset {str(root)!r} without images to calibrate on",
            expected=f"a folder images/ with a part {' or '.join(_part_names('calibration'))}",
            do="add one with images of the training set, not those of the validation",
        )
    return image_files_from(root)


def validation_images_from(path: Union[str, os.PathLike[str]]) -> Tuple[Path, ...]:
    """Images to validate on, not opened, whether or not they have masks.

    Those of a dataset's validation part, of a folder or of a list. Raises ImageError as
    `image_files_from` does.
    """
    root = Path(path)
    if not os.path.isdir(root):
        return image_files_from(root)
    return image_files_from(_part_folder(root, "validation") or root)


def masks_of_images(
    images: Iterable[Path], *, masks: Optional[Union[str, os.PathLike[str]]] = None
) -> Dict[Path, Path]:
    """The mask of each image that has one, by the layouts above or in the folder `masks`.

    Neither images nor masks need be complete, and nothing is opened. Raises DatasetError when a
    name occurs twice among the masks or `masks` is no folder.
    """
    given = None if masks is None else _existing_folder(masks)
    by_folder: Dict[Path, Dict[str, Path]] = {}
    found: Dict[Path, Path] = {}
    for image in images:
        if image.parent not in by_folder:
            folder = given or _masks_for(image.parent)
            files = files_in_folder(folder, MASK_SUFFIXES) if folder is not None else ()
            by_folder[image.parent] = _by_name(files)
        mask = by_folder[image.parent].get(unicodedata.normalize("NFC", image.stem))
        if mask is not None:
            found[image] = mask
    return found


def _masks_for(images: Path) -> Optional[Path]:
    """The folder of masks beside that of images, whose part may have its other name."""
    folder = Path(os.path.abspath(images))
    others = [folder.with_name(word) for word in _PART_NAMES.get(folder.name, ())]
    beside = (_masks_beside(path) for path in (folder, *others))
    return next((path for path in beside if path is not None), None)


def _part_names(part: str) -> Tuple[str, ...]:
    return _PART_NAMES.get(part, (part,))


def _part_folder(root: Path, part: str) -> Optional[Path]:
    """The folder of images of that part below a dataset's root; the undivided one comes last."""
    parts = [root / name / word for name in _MASK_ROOTS for word in _part_names(part)]
    for folder in parts:
        if os.path.isdir(folder):
            return folder
    for folder in (root / name for name in _MASK_ROOTS):
        if os.path.isdir(folder) and _has_images(folder):
            return folder
    return None


def _parallel_masks(images: Path, root: Path, part: str) -> Optional[Path]:
    """The folder of masks for a folder of images that `_part_folder` found below `root`."""
    name, *word = images.relative_to(root).parts
    for mask_root in _MASK_ROOTS[name]:
        words = (*word, *_part_names(part)) if word else ("",)
        for folder in (root / mask_root / w for w in words):
            if os.path.isdir(folder):
                return folder
    return None


def _masks_beside(images: Path) -> Optional[Path]:
    """The folder with "masks" in place of "images" in its path, the last one that fits."""
    parts = Path(os.path.abspath(images)).parts
    for index in range(len(parts) - 1, 0, -1):
        for mask_root in _MASK_ROOTS.get(parts[index], ()):
            folder = Path(*parts[:index], mask_root, *parts[index + 1 :])
            if os.path.isdir(folder):
                return folder
    return None


def _matched(image_folder: Path, mask_folder: Path) -> Tuple[Pair, ...]:
    images = _by_name(files_in_folder(image_folder, IMAGE_SUFFIXES))
    masks = _by_name(files_in_folder(mask_folder, MASK_SUFFIXES))
    if not images:
        raise DatasetError(
            f"no image directly in {str(image_folder)!r}",
            expected=f"files that end in {', '.join(IMAGE_SUFFIXES)}",
            do="give the folder that holds the images themselves",
        )
    without_mask = [file for name, file in images.items() if name not in masks]
    without_image = [file for name, file in masks.items() if name not in images]
    if without_mask or without_image:
        raise DatasetError(
            " and ".join(
                f"{len(alone)} {what} ({_some_names(alone)})"
                for alone, what in (
                    (without_mask, f"images without a mask in {str(mask_folder)!r}"),
                    (without_image, f"masks without an image in {str(image_folder)!r}"),
                )
                if alone
            ),
            expected="for each image a mask of the same name, as .png, .bmp or .tif",
            do="rename, add or remove these files",
        )
    return tuple(Pair(file, masks[name]) for name, file in images.items())


def _by_name(files: Sequence[Path]) -> Dict[str, Path]:
    """Files by name without suffix. macOS stores the letters of a Korean name in pieces (NFD)."""
    found: Dict[str, Path] = {}
    twice: List[Path] = []
    for file in files:
        first = found.setdefault(unicodedata.normalize("NFC", file.stem), file)
        if first is not file:
            twice += [first, file]
    if twice:
        raise DatasetError(
            f"files of the same name but for the suffix in {str(twice[0].parent)!r}: "
            f"{_some_names(twice)}",
            expected="one file of each name",
            do="remove or rename those that are not meant",
        )
    return found


def _some_names(files: Sequence[Path]) -> str:
    return ", ".join(repr(file.name) for file in files[:3]) + (", ..." if len(files) > 3 else "")


def _has_images(folder: Path) -> bool:
    return bool(files_in_folder(folder, IMAGE_SUFFIXES))


def _existing_folder(folder: Union[str, os.PathLike[str]]) -> Path:
    path = Path(folder)
    if not os.path.isdir(path):
        raise DatasetError(
            f"{str(path)!r}, which is not a folder",
            expected="a folder of images and masks",
            do="check the name",
        )
    return path
