"""Smaller copies inside a label raster, by which GIS programs show all of it at once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Dict, List

from engines.errors import OutputError
from engines.field.geotiff import rasterio_package
from engines.field.raster import gdal_cache

SMALLEST = 256  # pixels of the longer side below which no smaller copy is made
_CACHE_BYTES = 64 * 2**20


def finish_labels(path: Path, tags: Dict[str, str]) -> None:
    """Add pyramids and `tags` to the label raster `path`, which has not its final name yet.

    A pixel of a smaller copy has the class that most pixels below it have. The smaller copies are
    compressed as the raster is. Raises OutputError where there is no room.
    """
    rasterio = rasterio_package()
    from rasterio._err import CPLE_BaseError  # what GDAL reports on a full disk, undocumented
    from rasterio.enums import Resampling

    try:
        with gdal_cache(_CACHE_BYTES), warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(str(path), "r+", driver="GTiff") as labels:
                labels.update_tags(**tags)
                factors = pyramid_factors(labels.height, labels.width)
                if factors:
                    labels.build_overviews(factors, Resampling.mode)
            for level in range(len(factors)):
                _read_back(path, level)
    except (rasterio.errors.RasterioError, CPLE_BaseError, OSError) as error:
        raise OutputError(
            f"{str(path)!r}, to which no smaller copies could be added ({error})",
            expected="room for a third more",
            do="free some space and run the same command again",
        ) from error


def pyramid_factors(height: int, width: int) -> List[int]:
    """2, 4, 8, ... until a copy is at most 256 pixels high and wide."""
    factors = []
    factor = 1
    while max(height, width) > SMALLEST * factor:
        factor *= 2
        factors.append(factor)
    return factors


def _read_back(path: Path, level: int) -> None:
    """GDAL closes a file that it could not finish writing without an error."""
    with rasterio_package().open(str(path), driver="GTiff", overview_level=level) as copy:
        step = copy.block_shapes[0][0]
        for row in range(0, copy.height, step):
            copy.read(1, window=((row, min(row + step, copy.height)), (0, copy.width)))
