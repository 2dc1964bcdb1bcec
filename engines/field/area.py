"""How much of a field each class covers, in pixels and hectares."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from engines.field.palette import NODATA, class_name
from engines.reports.report import write_text

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from engines.field.ground import Ground
    from engines.field.label_raster import LabelRaster
    from engines.progress import Progress
    from engines.resize import Labels

_COUNTED = 32  # rows at a time where the pixels of a row differ in area: 8 bytes for each
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class ClassArea:
    """`percent` is of all that is not nodata; None for nodata itself. No `hectares`: no place."""

    index: int
    name: str
    pixels: int
    hectares: Optional[float]
    percent: Optional[float]


@dataclass(frozen=True)
class FieldAreas:
    """Each named class by index, unnamed ones that occur, and nodata. `problem` is the ground's."""

    classes: Tuple[ClassArea, ...]
    nodata: ClassArea
    problem: str


def areas_of_labels(raster: LabelRaster, classes: Sequence[str], progress: Progress) -> FieldAreas:
    """Reads the raster once. Shares are of the area where it is known, else of the pixels."""
    ground = raster.ground
    pixels: NDArray[np.int64] = np.zeros(256, np.int64)
    hectares: NDArray[np.float64] = np.zeros(256)
    for row, labels in raster.rows(progress):
        for counted, measured in _counts(ground, row, labels):
            pixels += counted
            hectares += measured
    if ground.hectares is not None:
        hectares[:] = pixels * ground.hectares
    share = (hectares if ground.measured else pixels)[:NODATA]
    whole = share.sum()
    rows: List[ClassArea] = []
    for index in range(256):
        if index >= len(classes) and not pixels[index] and index != NODATA:
            continue
        rows.append(
            ClassArea(
                index,
                "no data" if index == NODATA else class_name(classes, index),
                int(pixels[index]),
                float(hectares[index]) if ground.measured else None,
                float(100 * share[index] / whole) if index != NODATA and whole else None,
            )
        )
    return FieldAreas(tuple(rows[:-1]), rows[-1], ground.problem)


def write_area_csv(areas: FieldAreas, path: Path) -> None:
    """class, name, pixels, percent, hectares; UTF-8 with the mark by which Excel knows it.

    Raises OutputError; a file appears whole or not at all.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["class", "name", "pixels", "percent", "hectares"])
    for area in (*areas.classes, areas.nodata):
        writer.writerow(
            [
                area.index,
                _not_a_formula(area.name),
                area.pixels,
                "" if area.percent is None else f"{area.percent:.4f}",
                "" if area.hectares is None else f"{area.hectares:.6f}",
            ]
        )
    write_text(path, "\ufeff" + text.getvalue())


def _counts(
    ground: Ground, row: int, labels: Labels
) -> Iterable[Tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Pixels and hectares of each value; no hectares where all pixels are of the same."""
    for start in range(0, len(labels), _COUNTED):
        some = labels[start : start + _COUNTED]
        counted = np.bincount(some.ravel(), minlength=256)
        if not ground.measured or ground.hectares is not None:
            yield counted, np.zeros(256)
            continue
        each = ground.pixel_hectares(row + start, len(some))
        weights = np.broadcast_to(each, some.shape).ravel()
        yield counted, np.asarray(np.bincount(some.ravel(), weights, 256), np.float64)


def _not_a_formula(name: str) -> str:
    """A spreadsheet would run a name that looks like one; the names come with the bundle."""
    return f"'{name}" if name.startswith(_FORMULA) else name
