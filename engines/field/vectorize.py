"""Labels as polygons in a GeoJSON file (RFC 7946): longitude and latitude, WGS 84."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterable, Iterator, List, Sequence, TextIO, Tuple

import numpy as np

from engines.errors import ImageError, output_error
from engines.field.palette import class_name
from engines.field.regions import MAX_HELD_BYTES, Region, RegionTracer

if TYPE_CHECKING:
    from pathlib import Path

    from engines.field.ground import Floats, Ground
    from engines.field.label_raster import LabelRaster
    from engines.progress import Progress

_BATCH_POINTS = 100_000  # projected at once: each call to PROJ costs a millisecond
_WRITTEN_POINTS = 50_000  # as one piece of text
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class Polygons:
    """How many were written, and left out for their size; `cuts` as `RegionTracer` tells them."""

    written: int
    left_out: int
    cuts: Tuple[int, ...]


def write_polygons(
    raster: LabelRaster,
    classes: Sequence[str],
    path: Path,
    progress: Progress,
    *,
    min_hectares: float = 0.0,
    max_held_bytes: int = MAX_HELD_BYTES,
) -> Polygons:
    """A polygon with its holes for each region of equal labels that is connected over sides.

    Outlines follow the pixels; neighbours share theirs exactly. Properties: "class" (index),
    "name", "pixels" and "hectares". Regions below `min_hectares` are left out, and the holes that
    they fill in others stay. Nodata is no region. The raster is read once and the file written as
    it goes; see `RegionTracer` for the memory. Raises ImageError for a raster without a place on
    earth and OutputError; a file appears whole or not at all.
    """
    ground = raster.ground
    if not ground.placed:
        raise ImageError(
            f"{str(raster.path)!r}: {ground.problem}",
            expected="a georeference, without which polygons have no longitude and latitude",
            do="leave --vectorize out, or give the GeoTIFF its georeference (gdal_edit.py -a_srs)",
        )
    tracer = RegionTracer(raster.hw[1], max_held_bytes=max_held_bytes)
    writer = _Writer(ground, classes, min_hectares)
    with _whole_file(path) as file:
        file.write('{"type":"FeatureCollection","features":[')
        for _, labels in raster.rows(progress):
            writer.write(file, tracer.add(labels))
        writer.write(file, tracer.finish())
        file.write("\n]}\n")
    return Polygons(writer.written, writer.left_out, tuple(tracer.cuts))


class _Writer:
    def __init__(self, ground: Ground, classes: Sequence[str], min_hectares: float) -> None:
        self.written = self.left_out = 0
        self._ground, self._classes, self._min = ground, classes, min_hectares
        self._decimals = _decimals(ground)

    def write(self, file: TextIO, regions: Iterable[Region]) -> None:
        batch: List[Region] = []
        points = 0
        for region in regions:
            if self._is_small(region):
                self.left_out += 1
                continue
            batch.append(region)
            points += sum(map(len, region.rings))
            if points >= _BATCH_POINTS:
                self._write_batch(file, batch)
                batch, points = [], 0
        if batch:
            self._write_batch(file, batch)

    def _is_small(self, region: Region) -> bool:
        """Known before anything is projected, where all pixels have the same size."""
        pixel = self._ground.hectares
        return pixel is not None and region.pixels * pixel < self._min

    def _write_batch(self, file: TextIO, regions: List[Region]) -> None:
        rings = [ring for region in regions for ring in region.rings]
        degrees = self._ground.lonlat(np.concatenate(rings))
        if not np.isfinite(degrees).all():
            raise ImageError(
                "a raster that reaches beyond its coordinate system",
                expected="pixels that have a longitude and latitude",
                do="leave --vectorize out, or give the GeoTIFF the right coordinate system",
            )
        rounded = np.round(degrees, self._decimals)
        end = 0
        for region in regions:
            spans = []
            for ring in region.rings:
                spans.append(slice(end, end + len(ring)))
                end += len(ring)
            hectares = self._hectares(region, degrees, spans)
            if hectares < self._min:
                self.left_out += 1
                continue
            self._write_feature(file, region, hectares, [rounded[span] for span in spans])
            self.written += 1

    def _hectares(self, region: Region, degrees: Floats, spans: Sequence[slice]) -> float:
        if self._ground.hectares is not None:
            return region.pixels * self._ground.hectares
        return self._ground.hectares_of_rings([degrees[span] for span in spans])

    def _write_feature(
        self, file: TextIO, region: Region, hectares: float, outlines: List[Floats]
    ) -> None:
        properties = {
            "class": region.label,
            "name": class_name(self._classes, region.label),
            "pixels": region.pixels,
            "hectares": float(f"{hectares:.6g}"),
        }
        file.write("," if self.written else "")
        file.write('\n{"type":"Feature","properties":')
        file.write(_JSON(properties))
        file.write(',"geometry":{"type":"Polygon","coordinates":[')
        for index, outline in enumerate(outlines):
            # The outer ring counter-clockwise, as RFC 7946 wants it, holes clockwise.
            turned = outline if self._ground.mirrored else outline[::-1]
            file.write(",[" if index else "[")
            for start in range(0, len(turned), _WRITTEN_POINTS):
                some = turned[start : start + _WRITTEN_POINTS].tolist()
                file.write(("," if start else "") + _JSON(some)[1:-1])
            file.write(f",{_JSON(turned[0].tolist())}]")
        file.write("]}}")


def _decimals(ground: Ground) -> int:
    """Of the degrees, so that a corner is told to a hundredth of a pixel."""
    middle = np.array([[0, 0], [1, 0], [0, 1]]) + np.array(ground.hw)[::-1] // 2
    corners = ground.lonlat(middle)
    smallest = min(float(np.hypot(*(corners[side] - corners[0]))) for side in (1, 2))
    return min(12, max(6, math.ceil(-math.log10(smallest / 100)))) if smallest > 0 else 12


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[TextIO]:
    """A text file that gets its name when all is written, and is gone if that does not happen."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Half a surrogate pair in a name becomes what JSON, too, writes for it.
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        do = "leave --vectorize out, or give --min-area to write fewer polygons"
        raise output_error(repr(str(path)), error, do=do) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
