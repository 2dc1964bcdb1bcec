"""A finished label raster, read a few rows at a time."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterator, Optional, Tuple

from engines.errors import ImageError
from engines.field.geotiff import opened_geotiff, rasterio_package
from engines.field.ground import Ground, ground_of_dataset
from engines.field.raster import gdal_cache

if TYPE_CHECKING:
    from pathlib import Path

    from engines.progress import Progress
    from engines.resize import Labels

READ_PIXELS = 2**24  # at a time, in whole rows of the file's tiles
_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class LabelRaster:
    """An open GeoTIFF of one uint8 band; see `opened_labels`."""

    path: Path
    dataset: Any

    @property
    def hw(self) -> Tuple[int, int]:
        return self.dataset.height, self.dataset.width

    @property
    def ground(self) -> Ground:
        """How large its pixels are and where."""
        return ground_of_dataset(self.dataset)

    @property
    def tags(self) -> Dict[str, str]:
        return dict(self.dataset.tags())

    def preview(self, hw: Tuple[int, int]) -> Labels:
        """The whole raster in `hw` pixels, from its smaller copies where it has them."""
        labels: Labels = self.dataset.read(1, out_shape=hw)
        return labels

    def rows(self, progress: Optional[Progress] = None) -> Iterator[Tuple[int, Labels]]:
        """(row, labels (h, W)) from the top; ImageError where the file is cut short."""
        rasterio = rasterio_package()
        height, width = self.hw
        tile = self.dataset.block_shapes[0][0]
        step = max(1, READ_PIXELS // (width * tile)) * tile
        for row in range(0, height, step):
            count = min(step, height - row)
            try:
                labels = self.dataset.read(1, window=((row, row + count), (0, width)))
            except rasterio.errors.RasterioError as error:
                raise ImageError(
                    f"{str(self.path)!r}, which cannot be read from row {row} on ({error})",
                    expected="the whole label raster",
                    do="segment again with --overwrite",
                ) from error
            yield row, labels
            if progress is not None:
                progress.advance(row + count, height)


@contextlib.contextmanager
def opened_labels(path: Path) -> Iterator[LabelRaster]:
    """ImageError where `path` is no label raster, or is cut short."""
    with gdal_cache(_CACHE_BYTES), contextlib.closing(opened_geotiff(path)) as dataset:
        if dataset.count != 1 or dataset.dtypes[0] != "uint8":
            raise ImageError(
                f"{str(path)!r} with {dataset.count} bands of {dataset.dtypes[0]}",
                expected="a GeoTIFF of labels, one band of 8 bits",
                do="segment again with --overwrite",
            )
        yield LabelRaster(path, dataset)
