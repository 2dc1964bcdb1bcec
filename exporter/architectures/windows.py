"""Static tables of Swin's windows: made of sizes alone, so that a graph holds them as constants.

All for maps that are whole windows; see `padded_hw`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.int64]
Values = NDArray[np.float32]

# Added to the product of a query and a key from different parts of the image. As in the original:
# finite, so that FP16 holds it.
MASKED = -100.0


def padded_hw(hw: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Both sizes rounded up to a multiple."""
    return -(-hw[0] // multiple) * multiple, -(-hw[1] // multiple) * multiple


@lru_cache(maxsize=16)
def relative_positions(window: int) -> Table:
    """(L, L): the row of the bias table for a query's and a key's position in the window."""
    y, x = np.divmod(np.arange(window**2), window)
    rows, columns = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (rows + window - 1) * (2 * window - 1) + columns + window - 1


@lru_cache(maxsize=16)
def shift_mask(hw: tuple[int, int], window: int, shift: int) -> Values:
    """(windows, L, L): MASKED where a rolled map of size `hw` has brought strangers together."""
    rows, columns = (_regions(size, window, shift) for size in hw)
    regions = rows[:, None] * 3 + columns[None, :]
    cut = regions.reshape(hw[0] // window, window, hw[1] // window, window).swapaxes(1, 2)
    of_window = cut.reshape(-1, window**2)
    apart = of_window[:, :, None] != of_window[:, None, :]
    return np.where(apart, np.float32(MASKED), np.float32(0.0))


def _regions(size: int, window: int, shift: int) -> Table:
    """0 for whole windows, then 1, then 2 for what was rolled over from the other side."""
    position = np.arange(size)
    return (position >= size - window).astype(np.int64) + (position >= size - shift)


@lru_cache(maxsize=16)
def windows_of(hw: tuple[int, int], window: int, shift: int) -> Table:
    """(windows * L): for each window's positions, which of a map's H*W tokens stands there.

    `hw` is the map's size before it is padded; what padding adds is number H*W. Padding, rolling
    and cutting into windows at once.
    """
    numbers = np.full(padded_hw(hw, window), hw[0] * hw[1], dtype=np.int64)
    numbers[: hw[0], : hw[1]] = np.arange(hw[0] * hw[1]).reshape(hw)
    rolled = np.roll(numbers, (-shift, -shift), axis=(0, 1))
    height, width = rolled.shape
    cut = rolled.reshape(height // window, window, width // window, window).swapaxes(1, 2)
    return cut.reshape(-1)


@lru_cache(maxsize=16)
def places_in_windows(hw: tuple[int, int], window: int, shift: int) -> Table:
    """(H*W): for each token of a map, its number in `windows_of`."""
    numbers = windows_of(hw, window, shift)
    kept = np.flatnonzero(numbers < hw[0] * hw[1])
    places = np.empty(hw[0] * hw[1], dtype=np.int64)
    places[numbers[kept]] = kept
    return places
