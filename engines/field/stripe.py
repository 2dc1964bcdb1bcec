"""A raster in vertical stripes that fit the memory, each as a sequence of batches of windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from engines.field.grid import Axis
from engines.field.raster import FieldRaster
from engines.resize import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]  # (H, W), True where there is data
else:
    Mask = np.ndarray

MIB = 1 << 20

# A batch of logits above this part of the memory is not computed while the last one is blended.
_LARGE_BATCH = 0.125


@dataclass(frozen=True)
class Grid:
    """The windows of a raster: their rows and columns, and the size of a batch of them."""

    rows: Axis
    columns: Axis
    batch: int


class Window(NamedTuple):
    """One window that `row` and `column` number; `place` is where it lies in its batch.

    `valid` tells the pixels between its edges, None if all are. A window on nodata alone has no
    place and is not run.
    """

    row: int
    column: int
    place: Optional[int]
    valid: Optional[Mask]


class Batch(NamedTuple):
    """Windows in their order and the pixels (N, h, w, C) of those with a place; None if N is 0."""

    windows: List[Window]
    pixels: Optional[Image]


@dataclass(frozen=True)
class Memory:
    """What the windows of a network take, in bytes: the way a raster is cut follows from it.

    `outputs` is 0 for a network that gives labels alone.
    """

    outputs: int
    channels: int
    total: int

    def batch(self, wished: int, size: Tuple[int, int]) -> int:
        """As many windows at once as wished, if their logits leave room for the rest."""
        most = int(self.total * _LARGE_BATCH) // max(1, self.logits(1, size))
        return max(1, min(wished, most)) if self.outputs else wished

    def logits(self, batch: int, size: Tuple[int, int]) -> int:
        """Of one batch."""
        return 4 * self.outputs * batch * size[0] * size[1]

    def blends_beside(self, batch: int, size: Tuple[int, int]) -> bool:
        """Whether there is room to blend one batch while the next is computed."""
        return self.logits(batch, size) <= self.total * _LARGE_BATCH

    def stripe_columns(self, grid: Grid) -> int:
        """How many pixels of width a stripe can have."""
        size = (grid.rows.size, grid.columns.size)
        batches = 2 if self.blends_beside(grid.batch, size) else 1
        carried = 2 * 4 * self.outputs * size[0] * grid.columns.most_covered
        left = self.total - batches * self.logits(grid.batch, size) - carried
        # Sums that wait for the next row; pixels and masks of three rows of windows (in use,
        # ready, in the making); labels.
        column = 4 * self.outputs * grid.rows.most_covered
        column += (3 * (self.channels + 1) + 2) * size[0]
        return max(0, left) // column


def stripes_of_grid(grid: Grid, memory: Memory) -> List[Tuple[int, int]]:
    """Columns of windows (first, one behind the last) that finish the pixels of each stripe.

    At the seams the windows before a stripe's first are run for both, so the stripes are as wide
    as fits, and equally wide. A stripe has one column of windows at least, whatever it takes.
    """
    axis = grid.columns
    width = max(memory.stripe_columns(grid), axis.size)
    for count in range(1, len(axis) + 1):
        cuts = [index * len(axis) // count for index in range(count + 1)]
        stripes = [(cuts[index], cuts[index + 1]) for index in range(count)]
        if all(_width(axis, stripe) <= width for stripe in stripes):
            break
    return stripes


def windows_of_stripe(grid: Grid, stripe: Tuple[int, int]) -> int:
    """How many windows it has, those that another stripe also runs included."""
    return len(grid.rows) * (stripe[1] - grid.columns.first_on(stripe[0]))


def batches_of_stripe(
    raster: FieldRaster, grid: Grid, stripe: Tuple[int, int], first_row: int
) -> Iterator[Batch]:
    """Every window of a stripe from row `first_row` on, from left to right and top to bottom."""
    columns = grid.columns
    first = columns.first_on(stripe[0])
    left, right = columns.starts[first], columns.stop(stripe[1] - 1)
    batch = _Filling(grid.batch)
    for row, pixels, valid in _rows_of_windows(raster, grid.rows, (left, right), first_row):
        for column in range(first, stripe[1]):
            start = columns.starts[column] - left
            across = slice(start, start + columns.size)
            filled = valid is None or bool(valid[:, across].any())
            finished = _between_edges(valid, grid, (row, column), start) if filled else None
            batch.add(row, column, pixels[:, across] if filled else None, finished)
            if batch.is_full:
                yield batch.taken()
        if batch.is_empty_of_pixels:
            yield batch.taken()
    if batch.windows:
        yield batch.taken()


class _Filling:
    """The batch that is being filled."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.windows: List[Window] = []
        self._pixels: List[Image] = []

    def add(self, row: int, column: int, pixels: Optional[Image], valid: Optional[Mask]) -> None:
        place = None if pixels is None else len(self._pixels)
        self.windows.append(Window(row, column, place, valid))
        if pixels is not None:
            self._pixels.append(pixels)

    @property
    def is_full(self) -> bool:
        return len(self._pixels) == self._size

    @property
    def is_empty_of_pixels(self) -> bool:
        return bool(self.windows) and not self._pixels

    def taken(self) -> Batch:
        batch = Batch(self.windows, np.stack(self._pixels) if self._pixels else None)
        self.windows, self._pixels = [], []
        return batch


def _rows_of_windows(
    raster: FieldRaster, axis: Axis, sides: Tuple[int, int], first: int
) -> Iterator[Tuple[int, Image, Optional[Mask]]]:
    """Pixels (h, W, C) and mask (h, W) of each row of windows; no pixel is read twice."""
    pixels: Optional[Image] = None
    valid: Optional[Mask] = None
    read = axis.starts[first]
    for row in range(first, len(axis)):
        start, stop = axis.starts[row], axis.stop(row)
        kept = max(0, read - start)
        new_pixels = np.empty((axis.size, sides[1] - sides[0], raster.channels), np.uint8)
        new_valid = np.empty(new_pixels.shape[:2], np.bool_)
        if pixels is not None and valid is not None and kept:
            new_pixels[:kept], new_valid[:kept] = pixels[-kept:], valid[-kept:]
        raster.read((max(start, read), stop), sides, new_pixels[kept:], new_valid[kept:])
        pixels, valid, read = new_pixels, new_valid, stop
        yield row, pixels, None if valid.all() else valid


def _between_edges(
    valid: Optional[Mask], grid: Grid, place: Tuple[int, int], start: int
) -> Optional[Mask]:
    """The part of a row's mask that the window `place` finishes; `start` is its first column."""
    if valid is None:
        return None
    row, column = place
    top = grid.rows.edges[row] - grid.rows.starts[row]
    bottom = grid.rows.edges[row + 1] - grid.rows.starts[row]
    left = start + grid.columns.edges[column] - grid.columns.starts[column]
    right = start + grid.columns.edges[column + 1] - grid.columns.starts[column]
    return valid[top:bottom, left:right]


def _width(axis: Axis, stripe: Tuple[int, int]) -> int:
    """Of all windows of a stripe together."""
    return axis.stop(stripe[1] - 1) - axis.starts[axis.first_on(stripe[0])]
