"""Logits of overlapping windows become labels, with no more of them in memory than overlap.

First along the columns, then along the rows, always in the order of the windows: a pixel's sum is
the same float32 number whatever is run together or kept apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Tuple

import numpy as np

from engines.errors import GraphError
from engines.evaluation.resized_logits import Logits
from engines.field.grid import Axis
from engines.resize import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rows of labels at a time: 6 classes of 512 columns then take 400 KB, which stay in the cache.
_ROWS = 32


class Blend:
    """The sums of one stripe: give it every window that is run, row by row, from left to right.

    `first` is the first column of windows that finishes pixels; columns before it only add to
    them. Holds `outputs` * 4 bytes for each pixel that two rows of windows share, over the
    stripe's width.
    """

    def __init__(self, rows: Axis, columns: Axis, outputs: int, stripe: Tuple[int, int]) -> None:
        self._rows, self._columns = rows, columns
        self._first, stop = stripe
        self._left = columns.edges[self._first]
        width = columns.edges[stop] - self._left
        # Pages of zeros take no memory until they are written to.
        self._waiting: Logits = np.zeros((outputs, rows.most_covered, width), np.float32)
        # What a window hands to the next one on its right, by turns.
        handed = (2, outputs, rows.size, columns.most_covered)
        self._carries: Logits = np.zeros(handed, np.float32)
        self._carried_from = (-1, -1)

    def finished(self, row: int, column: int, logits: Logits) -> Optional[Logits]:
        """Add the logits (K, h, w) of a window, which are overwritten.

        Gives the sums (K, rows, columns) between the edges of this row and column: a view, valid
        until the next call. None for a column before the first.
        """
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # labels_from_sums finds what is not finite
            across = self._across(row, column, logits)
            return None if column < self._first else self._down(row, column, across)

    def _across(self, row: int, column: int, logits: Logits) -> Logits:
        """The window's columns that no later window adds to; the rest is carried to the next."""
        axis = self._columns
        before, after = axis.covered_before(column), axis.covered_after(column)
        # A window on nodata alone is not run, and whatever it shares with the next is nodata.
        known = self._carried_from == (row, column - 1)
        carry = self._carries[(column - 1) % 2][:, :, :before] if known else None
        own = axis.size - after
        weights = axis.weights(column)
        both = min(before, own)
        if both:
            logits[:, :, :both] *= weights[:both]
            if carry is not None:
                logits[:, :, :both] += carry[:, :, :both]
        if after:
            following = self._carries[column % 2][:, :, :after]
            np.multiply(logits[:, :, own:], weights[own:], out=following)
            if carry is not None and before > own:
                following[:, :, : before - own] += carry[:, :, own:]
            self._carried_from = (row, column)
        return logits[:, :, :own]

    def _down(self, row: int, column: int, sums: Logits) -> Logits:
        """The same along the rows."""
        axis = self._rows
        left = self._columns.edges[column] - self._left
        waiting = self._waiting[:, :, left : left + sums.shape[2]]
        before, after = axis.covered_before(row), axis.covered_after(row)
        own = axis.size - after
        weights = axis.weights(row)[:, np.newaxis]
        both = min(before, own)
        if both:
            sums[:, :both] *= weights[:both]
            sums[:, :both] += waiting[:, :both]
        if after and before > own:
            following = sums[:, own:]
            following *= weights[own:]
            following[:, : before - own] += waiting[:, own:before]
            waiting[:, :after] = following
        elif after:
            np.multiply(sums[:, own:], weights[own:], out=waiting[:, :after])
        return sums[:, :own]


def labels_from_sums(sums: Logits, valid: Optional[NDArray[np.bool_]], nodata: int) -> Labels:
    """The class of the largest sum (the first of equal ones), (H, W) uint8, `nodata` if not valid.

    `valid` None means all. Raises GraphError where a valid pixel's sums are not finite.
    """
    count, height, width = sums.shape
    labels: Labels = np.empty((height, width), np.uint8)
    for top in range(0, height, _ROWS):
        rows = slice(top, min(top + _ROWS, height))
        largest_first = _places_from_the_end(sums[:, rows])
        here = None if valid is None else valid[rows]
        unfound = largest_first == 0  # NaN equals nothing
        if unfound.any() and (here is None or (unfound & here).any()):
            raise GraphError(
                "logits that are not finite",
                expected="numbers",
                do="run the field with --precision fp32, or export the model again",
            )
        np.subtract(count, largest_first, out=labels[rows], casting="unsafe")
        if here is not None:
            labels[rows][~here] = nodata
    return labels


def _places_from_the_end(sums: Logits) -> Labels:
    """K minus the index of the first largest sum, 0 where there is none.

    Several times as fast as numpy's argmax over the first axis: each step is one pass over bytes
    or floats that lie side by side.
    """
    count = len(sums)
    largest = sums.max(axis=0)
    places: Labels = np.zeros(largest.shape, np.uint8)
    equal = np.empty(largest.shape, np.bool_)
    scaled = np.empty(largest.shape, np.uint8)
    for index in range(count):
        np.equal(sums[index], largest, out=equal)
        np.multiply(equal.view(np.uint8), np.uint8(count - index), out=scaled)
        np.maximum(places, scaled, out=places)
    return places
