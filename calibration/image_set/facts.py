"""What is known of an image after it was read once: a few numbers, and never its pixels."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.image_set.perceptual_hash import perceptual_hash
from engines.errors import DatasetError
from engines.evaluation.scores import IGNORE
from engines.images import image_from_file, mask_from_file, sha256_of_file

Picture: TypeAlias = "NDArray[np.uint8]"  # (H, W, C)
Grey: TypeAlias = "NDArray[np.float32]"  # (H, W), 0..255

WORKING_PIXELS = 256 * 256


@dataclass(frozen=True)
class Reading:
    """How files are read: the channels of the network; `convert` as `image_from_file` means it.

    With `reduce_zero_label` 0 in a mask is no class and the others go down by one (ADE20K).
    """

    channels: int = 3
    convert: bool = False
    reduce_zero_label: bool = False


@dataclass(frozen=True)
class ImageFacts:
    """sha256 of the file; look: its perceptual hash; the others as `light_of_grey` says.

    classes: indices that its mask holds anywhere, ascending, without 255; None without a mask.
    """

    path: Path
    sha256: str
    look: int
    brightness: float
    contrast: float
    sharpness: float
    classes: tuple[int, ...] | None = None


def facts_from_file(path: Path, mask: Path | None = None, *, reading: Reading) -> ImageFacts:
    """Reads an image and its mask. Raises ImageError or DatasetError for what cannot be used."""
    image = image_from_file(path, channels=reading.channels, convert=reading.convert)
    grey = working_grey(image)
    brightness, contrast, sharpness = light_of_grey(grey)
    return ImageFacts(
        path=path,
        sha256=sha256_of_file(path),
        look=perceptual_hash(grey),
        brightness=brightness,
        contrast=contrast,
        sharpness=sharpness,
        classes=None if mask is None else _classes(path, mask, image.shape[:2], reading),
    )


def working_grey(image: Picture) -> Grey:
    """The image in grey with some 65536 pixels and its own ratio of sides, each 3 or more.

    Smaller ones are enlarged: what is compared is what a network sees, which resizes them all.
    Luma of RGB (ITU-R 601), the mean of any other channels.
    """
    height, width, channels = image.shape
    scale = math.sqrt(WORKING_PIXELS / (height * width))
    size = tuple(min(WORKING_PIXELS, max(3, round(side * scale))) for side in (width, height))
    if channels == 3:
        grey = Image.fromarray(image).convert("L").convert("F")
    else:
        grey = Image.fromarray(image.mean(axis=2, dtype=np.float32))
    # It averages when it shrinks; reducing_gap makes that fast for large photos. Rounded to whole
    # numbers, a blurred photo would look sharper than it is.
    small = grey.resize((size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(small)


def light_of_grey(grey: Grey) -> tuple[float, float, float]:
    """Brightness (mean, 0..255), contrast (standard deviation, 0..127.5) and sharpness.

    Sharpness is the variance of the Laplacian (4 neighbours, inside the border) over the variance
    of the picture: 0 for one without any structure, 20 for pure noise, 64 at most. Without the
    division every dark photo would count as blurred, for the Laplacian grows with the light.
    """
    values = grey.astype(np.float64)
    variance = float(values.var())
    inner = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    sharpness = float((around - 4 * inner).var()) / variance if variance > 0 else 0.0
    return float(values.mean()), math.sqrt(variance), sharpness


def _classes(
    path: Path, mask: Path, image_hw: tuple[int, ...], reading: Reading
) -> tuple[int, ...]:
    indices = mask_from_file(mask)
    if indices.shape != image_hw:
        (height, width), (rows, columns) = image_hw, indices.shape
        raise DatasetError(
            f"mask {os.fspath(mask)!r} of {columns}x{rows} pixels for an image of {width}x{height}",
            expected=f"the size of {os.fspath(path)!r}",
            do="give each image its own mask, or leave both out",
        )
    present = np.flatnonzero(np.bincount(indices.ravel(), minlength=256)[:IGNORE])
    if reading.reduce_zero_label:
        present = present[present > 0] - 1
    return tuple(int(index) for index in present)
