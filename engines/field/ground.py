"""How large the pixels of a georeferenced raster are, and where on the earth their corners lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SQUARE_METRES = 10_000.0  # of a hectare
MAX_DISTORTION = 0.01  # of areas in the plane; UTM has at most 0.002, Web Mercator 0.5 in Korea
# WGS 84 (NIMA TR8350.2): half of the longer axis in metres, and the square of the eccentricity.
_AXIS_M, _E2 = 6_378_137.0, 0.006_694_379_990_14
_CELL = 32  # pixels that share one area, where areas differ: 0.01 degrees of 1 km pixels
_WORLD = "EPSG:4326"
_PROJECTED = 2**18  # points at a time


@dataclass(frozen=True)
class Ground:
    """A raster of `hw` pixels on the ground; make one with `ground_of_raster`.

    `hectares` is the area of each pixel on the map's plane; None where pixels are measured on the
    ellipsoid, or not at all: `measured` tells. `problem` is a line that says why areas, or places,
    cannot be told or are told otherwise than usual; empty where nothing is unusual.
    """

    hw: Tuple[int, int]
    transform: Any  # affine.Affine
    crs: Any  # rasterio.crs.CRS or None
    hectares: Optional[float] = None
    measured: bool = False
    placed: bool = False
    problem: str = ""

    def pixel_hectares(self, row: int, rows: int) -> Floats:
        """(rows, W), (rows, 1) or (1, 1) hectares of each pixel of so many rows from `row` on.

        Where the raster is `measured` only. On the ellipsoid a pixel of a raster of degrees whose
        rows run along parallels is exact, others share the area of up to 32 x 32 pixels.
        """
        if self.hectares is not None:
            return np.array([[self.hectares]])
        along = self._along_parallels
        height, width = (1, self.hw[1]) if along else (_CELL, _CELL)
        ys = _edges(row, row + rows, height)
        xs = _edges(0, self.hw[1], width)
        corners = np.stack(np.meshgrid(xs, ys), axis=-1)
        longitude, q = self._equal_area(self.lonlat(corners.reshape(-1, 2)))
        shape = corners.shape[:2]
        areas = _quadrangles(longitude.reshape(shape), q.reshape(shape))
        pixels = np.diff(ys)[:, np.newaxis] * np.diff(xs)
        each = np.repeat(areas / pixels / SQUARE_METRES, np.diff(ys), axis=0)
        return each if along else np.repeat(each, np.diff(xs), axis=1)

    def hectares_of_rings(self, rings: Sequence[Floats]) -> float:
        """On the ellipsoid, of an outline and its holes, which run the other way.

        `rings` are (n, 2) degrees as `lonlat` gives them.
        """
        return abs(sum(_ring_area(*self._equal_area(ring)) for ring in rings)) / SQUARE_METRES

    def lonlat(self, corners: NDArray[Any]) -> Floats:
        """(n, 2) longitude and latitude in degrees, WGS 84, of (n, 2) columns and rows."""
        from rasterio.warp import transform

        columns, rows = np.asarray(corners, np.float64).T
        t = self.transform
        x, y = t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f
        if self._is_world:
            return np.stack([x, y], axis=1)
        degrees = np.empty((len(x), 2))
        for start in range(0, len(x), _PROJECTED):  # which gives lists, 5 times the memory
            part = slice(start, start + _PROJECTED)
            degrees[part] = np.array(transform(self.crs, _WORLD, x[part], y[part])).T
        return degrees

    @cached_property
    def mirrored(self) -> bool:
        """Whether what runs clockwise on the screen runs the other way on a map with north up."""
        height, width = self.hw
        box = self.lonlat(np.array([[0, 0], [width, 0], [width, height], [0, height]]))
        return _ring_area(*box.T) > 0

    @cached_property
    def _is_world(self) -> bool:
        return bool(self.crs.to_epsg() == 4326)

    @property
    def _along_parallels(self) -> bool:
        return bool(self.crs.is_geographic) and self.transform.b == self.transform.d == 0

    def _equal_area(self, degrees: Floats) -> Tuple[Floats, Floats]:
        """Metres on a plane that has the areas of the ellipsoid: Lambert's cylinder."""
        # Near the date line longitudes jump, in the plane of a raster they do not.
        from_middle = np.mod(degrees[:, 0] - self._middle + 180, 360) - 180
        return np.radians(from_middle) * _AXIS_M, authalic_metres(degrees[:, 1])

    @cached_property
    def _middle(self) -> float:
        height, width = self.hw
        return float(self.lonlat(np.array([[width / 2, height / 2]]))[0, 0])


def authalic_metres(latitude: Floats) -> Floats:
    """The height of Lambert's cylindrical equal-area projection, for degrees on WGS 84.

    Snyder, Map Projections: A Working Manual (USGS Professional Paper 1395), equations 3-12, 10-1.
    """
    sine = np.sin(np.radians(latitude))
    e = math.sqrt(_E2)
    q = (1 - _E2) * (sine / (1 - _E2 * sine**2) + np.arctanh(e * sine) / e)
    metres: Floats = _AXIS_M * q / 2
    return metres


def ground_of_raster(transform: Any, crs: Any, hw: Tuple[int, int]) -> Ground:
    """`transform` and `crs` as rasterio gives them, of a raster of `hw` pixels.

    Projected rasters are measured on the plane, in the unit of their coordinate system, as long as
    its areas are right within 1 %; others, and those in degrees, on the ellipsoid.
    """
    ground = Ground(hw, transform, crs)
    if not crs:
        return replace(ground, problem="the raster has no coordinate system")
    size = transform.determinant  # of a pixel
    if transform.is_identity or not math.isfinite(size) or not size:
        return replace(ground, problem="the raster has no place in its coordinate system")
    if not (crs.is_projected or crs.is_geographic):
        return replace(ground, problem="its coordinate system is neither of a map nor of the earth")
    on_earth = _hectares_on_earth(ground)
    if on_earth is None and not crs.is_projected:
        return replace(ground, problem="its coordinates lie outside their coordinate system")
    if not crs.is_projected:
        return replace(ground, measured=True, placed=True)
    return _on_plane(ground, on_earth)


def ground_of_dataset(dataset: Any) -> Ground:
    """That of an open rasterio dataset."""
    ground = ground_of_raster(dataset.transform, dataset.crs, (dataset.height, dataset.width))
    if not ground.measured and dataset.gcps[0]:
        return replace(ground, problem="it has control points, and gdalwarp gives it a place")
    return ground


def _on_plane(ground: Ground, on_earth: Optional[float]) -> Ground:
    unit = float(ground.crs.linear_units_factor[1])
    pixel = abs(ground.transform.determinant) * unit**2 / SQUARE_METRES
    if on_earth is None:
        return replace(
            ground, hectares=pixel, measured=True,
            problem="its coordinates lie outside their coordinate system",
        )  # fmt: skip
    whole = pixel * ground.hw[0] * ground.hw[1]
    if abs(whole / on_earth - 1) > MAX_DISTORTION:
        off = 100 * (whole / on_earth - 1)
        return replace(
            ground, measured=True, placed=True,
            problem=f"its map has areas {off:+.0f} % off, so they are those on the ellipsoid",
        )  # fmt: skip
    return replace(ground, hectares=pixel, measured=True, placed=True)


def _hectares_on_earth(ground: Ground) -> Optional[float]:
    """Of the whole raster; None where its coordinate system cannot tell."""
    from rasterio._err import CPLE_BaseError  # what a failing projection raises, undocumented
    from rasterio.errors import RasterioError

    height, width = ground.hw
    ys, xs = np.linspace(0, height, 5), np.linspace(0, width, 5)
    corners = np.stack(np.meshgrid(xs, ys), axis=-1)
    try:
        degrees = ground.lonlat(corners.reshape(-1, 2))
        if not (np.abs(degrees) <= (360, 90)).all():  # infinite, or metres that are called degrees
            return None
        longitude, q = ground._equal_area(degrees)
    except (RasterioError, CPLE_BaseError):
        return None
    area = float(_quadrangles(longitude.reshape(5, 5), q.reshape(5, 5)).sum()) / SQUARE_METRES
    return area if math.isfinite(area) and area > 0 else None


def _edges(start: int, stop: int, step: int) -> NDArray[np.int64]:
    return np.append(np.arange(start, stop, step), stop)


def _quadrangles(x: Floats, y: Floats) -> Floats:
    """Areas between the points of a grid (n + 1, m + 1), by half the product of their diagonals."""
    across = (x[1:, 1:] - x[:-1, :-1]) * (y[1:, :-1] - y[:-1, 1:])
    down = (x[1:, :-1] - x[:-1, 1:]) * (y[1:, 1:] - y[:-1, :-1])
    areas: Floats = np.abs(across - down) / 2
    return areas


def _ring_area(x: Floats, y: Floats) -> float:
    """Signed, positive counter-clockwise with y upwards."""
    x, y = x - x[0], y - y[0]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
