"""Images are sorted into strata by the classes they show, their light and their sharpness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from calibration.image_set.facts import ImageFacts


class Measure(NamedTuple):
    """A number of `ImageFacts` by which images are divided; `shares` say where, of all images."""

    name: str
    words: tuple[str, ...]  # of the parts, from low to high
    shares: tuple[float, ...]


# Contrast in two parts only: brightness and contrast together are the light, and with three parts
# each a few hundred images would be spread over strata of one or two.
MEASURES = (
    Measure("brightness", ("dark", "medium", "bright"), (1 / 3, 2 / 3)),
    Measure("contrast", ("flat", "harsh"), (1 / 2,)),
    Measure("sharpness", ("soft", "fair", "sharp"), (1 / 3, 2 / 3)),
)


class Stratum(NamedTuple):
    """Class indices of the mask (None without one), and the part of each measure, from 0."""

    classes: tuple[int, ...] | None
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Strata:
    """The stratum of each image, in their order, and where each measure was divided.

    `limits` by the measure's name: a part reaches up to its limit, which belongs to it.
    """

    of_image: tuple[Stratum, ...]
    limits: dict[str, tuple[float, ...]]


def strata_of_images(images: Sequence[ImageFacts]) -> Strata:
    """Divides one or more images at the quantiles of `MEASURES`; equal images stay together."""
    parts, limits = [], {}
    for measure in MEASURES:
        values = np.array([getattr(image, measure.name) for image in images], np.float64)
        limit = np.quantile(values, measure.shares)
        limits[measure.name] = tuple(map(float, limit))
        parts.append([int(part) for part in np.searchsorted(limit, values, side="left")])
    rows = zip(*parts, strict=True)
    of_image = tuple(Stratum(image.classes, row) for image, row in zip(images, rows, strict=True))
    return Strata(of_image, limits)
