"""A raster as the network's pixels: 8-bit bands as they are, measured ones stretched by a recipe.

Any part of it is read on its own and equals that part of the whole; a raster that is smaller than
a window is mirrored at its edges up to the window's size.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from engines.bands.composite import BandLimits, RunningLimits, composite_from_bands
from engines.bands.recipe import BandRecipe
from engines.batches import closed_error
from engines.errors import ImageError
from engines.field.geotiff import rasterio_package, row_of_blocks_bytes
from engines.progress import Progress
from engines.resize import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]  # (H, W), True where there is data
    Planes = NDArray[Any]  # (B, H, W), uint8 or float32
else:
    Mask = Planes = np.ndarray

Span = Tuple[int, int]  # first row or column, and the one behind the last

# Float values that are read and stretched at a time.
_CHUNK_VALUES = 4 << 20

# What GDAL keeps unpacked: a row of blocks, so that each is unpacked once, within these bounds.
_LEAST_CACHE, _MOST_CACHE = 16 << 20, 192 << 20


@dataclass(frozen=True)
class Layer:
    """One open file: `indexes` are its bands (from 1) that are read, `places` which planes they
    become; `alpha` is its alpha band, `masked` tells of a mask of its own, `nodata` of each band.
    """

    dataset: Any
    indexes: Tuple[int, ...]
    places: Tuple[int, ...]
    nodata: Tuple[Optional[float], ...]
    alpha: Optional[int]
    masked: bool


class FieldRaster:
    """`hw` pixels of `channels`; `canvas_hw` is that or the window's size, whichever is larger.

    `layers` hold a plane for each channel in the network's order, or, to be stretched, for each
    letter of `recipe` in its order; then `limits` must be set before pixels are read. Calls from
    several threads wait for each other.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        channels: int,
        recipe: Optional[BandRecipe],
        window_hw: Tuple[int, int],
    ) -> None:
        dataset = layers[0].dataset
        self.hw: Tuple[int, int] = (dataset.height, dataset.width)
        self.canvas_hw = (max(self.hw[0], window_hw[0]), max(self.hw[1], window_hw[1]))
        self.channels = channels
        self.recipe = recipe
        self.limits: Optional[BandLimits] = None
        self._layers = layers
        self._lock = threading.Lock()
        self._is_open = True

    def close(self) -> None:
        """Wait for a read in another thread; further ones fail. The files stay the caller's."""
        with self._lock:
            self._is_open = False

    @property
    def georeference(self) -> Dict[str, Any]:
        """Keyword arguments for a file that shall lie in the same place."""
        dataset = self._layers[0].dataset
        found: Dict[str, Any] = {"crs": dataset.crs}
        points, points_crs = dataset.gcps
        if points:
            found = {"gcps": points, "crs": points_crs}
        elif not dataset.transform.is_identity:
            found["transform"] = dataset.transform
        if dataset.rpcs is not None:
            found["rpcs"] = dataset.rpcs
        return {name: value for name, value in found.items() if value is not None}

    @property
    def cache_bytes(self) -> int:
        """What GDAL should keep unpacked while the raster is read from top to bottom."""
        row = sum(row_of_blocks_bytes(dataset) for dataset in self._datasets())
        return min(max(row * 5 // 4, _LEAST_CACHE), _MOST_CACHE)

    def measure_limits(self, progress: Progress) -> BandLimits:
        """The limits of the whole raster, read once; they become `limits`. Needs a recipe.

        Raises ImageError for a band that is nodata, constant or infinite.
        """
        assert self.recipe is not None  # asked by the caller
        running = RunningLimits(self.recipe)
        height, width = self.hw
        with progress.stage("range of the bands"):
            for rows in self._chunks((0, height), (0, width)):
                running.add(self._bands(rows, (0, width), None).transpose(1, 2, 0))
                progress.advance(rows[1], height)
        self.limits = running.result()
        return self.limits

    def read(self, rows: Span, columns: Span, pixels: Image, valid: Mask) -> None:
        """Fill `pixels` (h, w, C) and `valid` (h, w) with a part of the canvas.

        Raises ImageError where the file is damaged.
        """
        height, width = self.hw
        inside = (min(rows[0], height), min(rows[1], height)), (columns[0], min(columns[1], width))
        if inside == (rows, columns):
            self._read_inside(rows, columns, pixels, valid)
            return
        # Then the canvas is one window high, or one wide: the raster's whole side is there.
        (top, bottom), (left, right) = inside
        if rows[1] > height:
            top, bottom = 0, height
        if columns[1] > width:
            left, right = 0, width
        known = np.empty((bottom - top, right - left, self.channels), np.uint8)
        known_valid = np.empty(known.shape[:2], np.bool_)
        self._read_inside((top, bottom), (left, right), known, known_valid)
        down, across = _mirrored(rows, height) - top, _mirrored(columns, width) - left
        pixels[...] = known[down][:, across]
        valid[...] = known_valid[down][:, across]

    def preview(self, hw: Tuple[int, int]) -> Tuple[Image, Mask]:
        """The whole raster in `hw` pixels, which are taken from it (nearest), and where it has
        data; reads every block of a file without overviews.
        """
        pixels: Image = np.empty((*hw, self.channels), np.uint8)
        valid = np.empty(hw, np.bool_)
        self._fill((0, self.hw[0]), (0, self.hw[1]), pixels, valid)
        return pixels, valid

    def _read_inside(self, rows: Span, columns: Span, pixels: Image, valid: Mask) -> None:
        for part in self._chunks(rows, columns):
            here = slice(part[0] - rows[0], part[1] - rows[0])
            self._fill(part, columns, pixels[here], valid[here])

    def _chunks(self, rows: Span, columns: Span) -> Iterator[Span]:
        """Rows that are read at a time: all of 8-bit pixels, which are read into their place."""
        step = rows[1] - rows[0]
        if self.recipe is not None:
            planes = len(self.recipe.letters)
            step = max(1, _CHUNK_VALUES // (planes * (columns[1] - columns[0])))
        for top in range(rows[0], rows[1], step):
            yield top, min(top + step, rows[1])

    def _fill(self, rows: Span, columns: Span, pixels: Image, valid: Mask) -> None:
        if self.recipe is None:
            self._values(rows, columns, pixels.transpose(2, 0, 1), valid)
            return
        bands = self._bands(rows, columns, valid)
        pixels[...] = composite_from_bands(bands.transpose(1, 2, 0), self.recipe, self.limits)

    def _bands(self, rows: Span, columns: Span, valid: Optional[Mask]) -> Planes:
        """(B, h, w) float32, the recipe's nodata where the raster has no data."""
        assert self.recipe is not None  # asked by the callers
        hw = (rows[1] - rows[0], columns[1] - columns[0]) if valid is None else valid.shape
        bands: Planes = np.empty((len(self.recipe.letters), *hw), np.float32)
        known = np.empty(hw, np.bool_) if valid is None else valid
        self._values(rows, columns, bands, known)
        bands[:, ~known] = self.recipe.nodata
        return bands

    def _values(self, rows: Span, columns: Span, planes: Planes, valid: Mask) -> None:
        """Values as stored, float ones without data as the recipe's nodata; where there is any."""
        window = ((rows[0], rows[1]), (columns[0], columns[1]))
        valid[...] = False
        with self._lock:
            if not self._is_open:
                raise closed_error("the raster")
            self._values_of_layers(window, planes, valid)

    def _values_of_layers(self, window: Any, planes: Planes, valid: Mask) -> None:
        for layer in self._layers:
            seen = _mask_of(layer, window, valid.shape)
            if layer.places == tuple(range(len(planes))):
                _read(layer, layer.indexes, window, planes)
            else:
                for index, place in zip(layer.indexes, layer.places):
                    _read(layer, index, window, planes[place])
            for place, nodata in zip(layer.places, layer.nodata):
                known = self._known(planes[place], nodata)
                if seen is not None:
                    known = seen if known is None else known & seen
                if known is None:
                    valid[...] = True
                else:
                    valid |= known

    def _known(self, plane: Planes, nodata: Optional[float]) -> Optional[Mask]:
        """Where a band has data, None for everywhere; elsewhere it becomes the recipe's nodata."""
        if self.recipe is None:
            return None if nodata is None else plane != np.uint8(nodata)
        known: Mask = (plane != np.float32(self.recipe.nodata)) & (plane == plane)
        if nodata is not None:
            known &= plane != np.float32(nodata)
        plane[~known] = self.recipe.nodata
        return known

    def _datasets(self) -> List[Any]:
        return [layer.dataset for layer in self._layers]


@contextlib.contextmanager
def gdal_cache(size: int) -> Iterator[None]:
    """GDAL keeps `size` bytes of unpacked blocks; its default is 5 % of the machine's memory."""
    with rasterio_package().Env(GDAL_CACHEMAX=size):
        yield


def _mask_of(layer: Layer, window: Any, hw: Any) -> Optional[Mask]:
    """What the alpha band and the file's mask say; None if neither is there."""
    seen: Optional[Mask] = None
    if layer.alpha is not None:
        alpha = np.empty(hw, layer.dataset.dtypes[layer.alpha - 1])
        _read(layer, layer.alpha, window, alpha)
        seen = alpha != 0
    if layer.masked:
        with _named_damage(layer, window):
            mask = layer.dataset.read_masks(layer.indexes[0], window=window, out_shape=hw) != 0
        seen = mask if seen is None else seen & mask
    return seen


def _read(layer: Layer, indexes: Any, window: Any, out: Planes) -> None:
    with _named_damage(layer, window):
        layer.dataset.read(indexes, window=window, out=out)


@contextlib.contextmanager
def _named_damage(layer: Layer, window: Any) -> Iterator[None]:
    rasterio = rasterio_package()
    try:
        yield
    except (rasterio.errors.RasterioError, OSError) as error:
        (top, bottom), (left, right) = window
        reason = error.__cause__ or error  # GDAL's own words name band and block
        raise ImageError(
            f"{layer.dataset.name!r}, which cannot be read in rows {top} to {bottom - 1}, columns "
            f"{left} to {right - 1} ({reason})",
            expected="a whole GeoTIFF file",
            do="copy it again from where it was made",
        ) from error


def _mirrored(span: Span, length: int) -> NDArray[np.int64]:
    """For each place of `span` the one inside `length` that it shows, edges twice."""
    places = np.arange(span[0], span[1]) % (2 * length)
    return np.minimum(places, 2 * length - 1 - places)
