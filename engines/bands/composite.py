"""From measured bands to the network's uint8 image: the only place where that is computed.

`prepare`, `Segmenter`, `segment` and large fields all come here, so that a network sees in the
field what it was trained on. numpy only, and every step in float32, as the training's script
computed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterator, List, Optional, Tuple

import numpy as np

from engines.bands.recipe import LARGEST, BandRecipe
from engines.errors import ImageError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engines.resize import Image

    BandsArray = NDArray[Any]  # (H, W, B) in the order of a recipe's letters, in any memory order
    Plane = NDArray[np.float32]  # (rows, W) of one band
else:
    BandsArray = Plane = np.ndarray  # numpy 1.20 has no NDArray.

# Pixels at a time, so that the few float32 copies of them stay in the cache.
_BLOCK_PIXELS = 1 << 16

_FULL = (0.0, 255.0)  # where Python's floats keep an array float32


@dataclass(frozen=True)
class BandLimits:
    """Smallest and largest value of each band that is not nodata, by the recipe's letters.

    They become 0 and 255. With norm "uint8" they are always 0 and 255.
    """

    low: Tuple[float, ...]
    high: Tuple[float, ...]


class RunningLimits:
    """The limits of a raster from blocks of it, in any order: what the whole would give."""

    def __init__(self, recipe: BandRecipe) -> None:
        self._recipe = recipe
        self._low = [np.float32(np.inf)] * len(recipe.letters)
        self._high = [np.float32(-np.inf)] * len(recipe.letters)

    def add(self, block: BandsArray) -> None:
        """Take in (h, w, B) real numbers; InputError for another shape or dtype."""
        bands = _checked(block, self._recipe)
        nodata = np.float32(self._recipe.nodata)
        for index in range(bands.shape[2]):
            # fmin and fmax leave NaN out; some versions of numpy warn of it all the same.
            with np.errstate(invalid="ignore"):
                for _, plane in _planes(bands, index):
                    values = _replaced(plane, plane == nodata, np.float32(np.nan))
                    low = np.fmin.reduce(values, axis=None)
                    high = np.fmax.reduce(values, axis=None)
                    self._low[index] = np.fmin(self._low[index], low)
                    self._high[index] = np.fmax(self._high[index], high)

    def result(self) -> BandLimits:
        """Raises ImageError for a band that is all nodata, constant, or has infinite values.

        With norm "uint8" a constant band is fine, and one outside 0..255 is not.
        """
        check = _check_stretched if self._recipe.norm == "chw_minmax" else _check_ready
        for letter, low, high in zip(self._recipe.letters, self._low, self._high):
            check(letter, float(low), float(high))
        if self._recipe.norm == "uint8":
            count = len(self._recipe.letters)
            return BandLimits((_FULL[0],) * count, (_FULL[1],) * count)
        return BandLimits(tuple(map(float, self._low)), tuple(map(float, self._high)))


def limits_of_bands(bands: BandsArray, recipe: BandRecipe) -> BandLimits:
    """The limits of one scene, (H, W, B); errors as of `RunningLimits`."""
    limits = RunningLimits(recipe)
    limits.add(bands)
    return limits.result()


def composite_from_bands(
    bands: BandsArray, recipe: BandRecipe, limits: Optional[BandLimits] = None
) -> Image:
    """The image (H, W, C) uint8, newly allocated and contiguous, channels as `recipe.channels`.

    `bands` is (H, W, B) of real numbers in the order of `recipe.letters`, only read, and computed
    with as float32. Norm "chw_minmax", the training's own, for each band: low is the smallest value
    that is not nodata; negative values, nodata and NaN become low; then (x - low) / (high - low) *
    255 is rounded to the nearest integer, halves to the even one, as `cv2.imwrite` rounds floats.

    `limits`, of the whole raster that this is a part of, replace the scene's own; what lies outside
    them becomes 0 or 255 (and infinite values pass unseen). Raises InputError for another shape or
    dtype, and without `limits` ImageError for a band that is all nodata, constant, infinite or,
    with norm "uint8", outside 0..255.
    """
    array = _checked(bands, recipe)
    image: Image = np.empty(array.shape, np.uint8)
    for channel, rows, block in _composed(array, recipe, limits):
        image[rows, :, channel] = block
    return image


def composite_planes(
    bands: BandsArray, recipe: BandRecipe, limits: Optional[BandLimits] = None
) -> Image:
    """The image of `composite_from_bands` channel by channel, (C, H, W); errors as there."""
    array = _checked(bands, recipe)
    planes: Image = np.empty((array.shape[2], *array.shape[:2]), np.uint8)
    for channel, rows, block in _composed(array, recipe, limits):
        planes[channel, rows] = block
    return planes


def _composed(
    bands: BandsArray, recipe: BandRecipe, limits: Optional[BandLimits]
) -> Iterator[Tuple[int, slice, Image]]:
    """Some rows of a channel at a time, (rows, W) uint8."""
    whole = limits if limits is not None else limits_of_bands(bands, recipe)
    _check_limits(whole, recipe)
    for channel, letter in enumerate(recipe.channels):
        index = recipe.letters.index(letter)
        for rows, plane in _planes(bands, index):
            # What is not measured may be anything.
            with np.errstate(invalid="ignore", over="ignore"):
                values = _stretched(plane, recipe, whole.low[index], whole.high[index])
                if limits is not None:  # Its own leave nothing outside 0..255.
                    values = np.clip(values, *_FULL)
                block = values.astype(np.uint8)
                # Not measured becomes `low`. On bytes, that takes a tenth of the time on floats.
                block *= _measured(plane, recipe)
            yield channel, rows, block


def nodata_of_bands(bands: BandsArray, recipe: BandRecipe) -> NDArray[np.bool_]:
    """(H, W) bool, True where no band has a measurement: each is nodata or NaN there."""
    array = _checked(bands, recipe)
    empty = np.ones(array.shape[:2], np.bool_)
    nodata = np.float32(recipe.nodata)
    for index in range(array.shape[2]):
        for rows, plane in _planes(array, index):
            empty[rows] &= (plane == nodata) | (plane != plane)
    return empty


def _stretched(plane: Plane, recipe: BandRecipe, low: float, high: float) -> Plane:
    """Whole numbers, 0..255 within the limits; each step is rounded to float32, as in training.

    Anything where there is no measurement.
    """
    if recipe.norm != "chw_minmax":
        return np.rint(plane)
    smallest = np.float32(low)
    values = plane - smallest
    values /= np.float32(high) - smallest
    values *= np.float32(255)
    np.rint(values, out=values)
    return values


def _measured(plane: Plane, recipe: BandRecipe) -> NDArray[np.bool_]:
    """Neither nodata nor NaN nor negative."""
    measured = plane >= 0
    if recipe.nodata >= 0:
        measured &= plane != np.float32(recipe.nodata)
    return measured


def _replaced(plane: Plane, where: NDArray[np.bool_], value: np.float32) -> Plane:
    """With `value` in some places; the plane itself where there is no such place.

    Not numpy.where, which takes three times as long for the runs that borders are.
    """
    if not where.any():
        return plane
    values = plane.copy()
    np.copyto(values, value, where=where)
    return values


def _planes(bands: BandsArray, index: int) -> Iterator[Tuple[slice, Plane]]:
    """One band as float32, some rows at a time; a view where it is float32 already."""
    height, width = bands.shape[:2]
    step = max(1, _BLOCK_PIXELS // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        plane = bands[rows, :, index]
        if plane.dtype != np.float32:
            with np.errstate(over="ignore"):  # What no float32 can hold is found as infinite.
                plane = plane.astype(np.float32)
        yield rows, plane


def _checked(bands: BandsArray, recipe: BandRecipe) -> BandsArray:
    array = np.asarray(bands)
    count = len(recipe.letters)
    if (
        array.ndim != 3
        or array.shape[2] != count
        or array.size == 0
        or array.dtype.kind not in "fui"
    ):
        raise InputError(
            f"bands of shape {array.shape} and dtype {array.dtype}",
            expected=f"(height, width, {count}) of real numbers, in the order {recipe.letters}",
            do="stack the bands along the last axis with numpy.stack(..., axis=2)",
        )
    return array


def _check_limits(limits: BandLimits, recipe: BandRecipe) -> None:
    pairs: List[Tuple[float, float]] = list(zip(limits.low, limits.high))
    count = len(recipe.letters)
    if not len(limits.low) == len(limits.high) == count or not all(a < b for a, b in pairs):
        raise InputError(
            f"limits {limits.low} to {limits.high}",
            expected=f"for each of {recipe.letters} a low and a higher high",
            do="take them from limits_of_bands or RunningLimits",
        )


def _check_measured(letter: str, low: float, high: float) -> None:
    if low > high:  # as they began: nothing was taken in
        raise ImageError(
            f"band {letter}, which is nodata everywhere",
            expected="measured values",
            do="leave this scene out, or check the nodata value",
        )
    if not high - low <= LARGEST:  # nor is infinity minus infinity
        raise ImageError(
            f"band {letter} with values from {low:g} to {high:g}",
            expected="finite values that a float32 can hold",
            do="export the band again, with empty pixels as nodata or NaN",
        )


def _check_stretched(letter: str, low: float, high: float) -> None:
    _check_measured(letter, low, high)
    if high == low or high < 0:  # all negative values become one and the same
        raise ImageError(
            f"band {letter}, which is {low:g} everywhere"
            if high == low
            else f"band {letter} without a value of 0 or more, from {low:g} to {high:g}",
            expected="values that differ, to be stretched over 0..255",
            do="leave this scene out, or export the band again",
        )


def _check_ready(letter: str, low: float, high: float) -> None:
    _check_measured(letter, low, high)
    if low < 0 or high > 255:
        raise ImageError(
            f"band {letter} with values from {low:g} to {high:g} and norm uint8",
            expected="values 0..255",
            do="use norm chw_minmax, or bring the values to 0..255 as for the training",
        )
