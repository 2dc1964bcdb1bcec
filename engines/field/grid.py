"""Where the windows of a large raster lie, and what each of them has to say about a pixel.

Everything here is of one axis: rows and columns are cut alike, and the weight of a window at a
pixel is that of its row times that of its column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Tuple

import numpy as np

from engines.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_OVERLAP = 0.5


@dataclass(frozen=True)
class Axis:
    """Windows of `size` pixels, from `starts`, over `length` pixels, which is `size` or more.

    A pixel between `edges[i]` and `edges[i + 1]` is finished when the windows 0..i are known.
    With `blended` a pixel's value is the weighted sum of all windows that it lies in, else it is
    that of one window, the one whose centre is nearest.
    """

    length: int
    size: int
    starts: Tuple[int, ...]
    edges: Tuple[int, ...]
    blended: bool

    def __len__(self) -> int:
        return len(self.starts)

    def stop(self, index: int) -> int:
        """One behind the last pixel of a window."""
        return self.starts[index] + self.size

    def first_on(self, index: int) -> int:
        """The first window that has a part in the pixels from `edges[index]` on."""
        if not self.blended:
            return index
        first = index
        while first > 0 and self.stop(first - 1) > self.edges[index]:
            first -= 1
        return first

    def covered_before(self, index: int) -> int:
        """How many of a window's first pixels earlier windows also cover."""
        return self.stop(index - 1) - self.starts[index] if index else 0

    def covered_after(self, index: int) -> int:
        """How many of a window's last pixels later windows also cover."""
        return self.stop(index) - self.starts[index + 1] if index + 1 < len(self) else 0

    @property
    def most_covered(self) -> int:
        """The largest `covered_after`."""
        return max(self.covered_after(index) for index in range(len(self)))

    def weights(self, index: int) -> NDArray[np.float32]:
        """(size,) of one window: they fall linearly towards its edges where others overlap it.

        A window's weight is the distance to its nearest edge, divided by the sum of those of all
        windows there: at each pixel they sum to 1, and where there is one window it is 1 exactly.
        """
        own = _distance(self.size)
        total = own.copy()
        start = self.starts[index]
        for other in self._neighbours(index):
            shift = self.starts[other] - start
            if shift < 0:
                total[: self.size + shift] += own[-shift:]
            else:
                total[shift:] += own[: self.size - shift]
        return (own / total).astype(np.float32)

    def _neighbours(self, index: int) -> List[int]:
        start = self.starts[index]
        return [
            other
            for other in range(max(0, index - 4), min(len(self), index + 5))
            if other != index and abs(self.starts[other] - start) < self.size
        ]


def axis_of_windows(length: int, size: int, overlap: float, *, blended: bool) -> Axis:
    """As few windows as overlap by `overlap` of their size or more, evenly spread over `length`.

    Evenly, because shifting the last one alone back inside would let it overlap by nearly its
    whole size, which costs memory and gives other windows' edges more weight than is due. Raises
    ConfigError unless `overlap` is 0 to 0.5: with more, pixels lie in three windows and the time
    grows with the square.
    """
    if not 0 <= overlap <= MOST_OVERLAP:
        raise ConfigError(
            f"overlap {overlap:g}",
            expected=f"the part of a window that it shares with the next, 0 to {MOST_OVERLAP:g}",
            do="use 0.25",
        )
    room = length - size
    stride = max(1, size - int(np.ceil(size * overlap)))
    last = -(-room // stride)  # as many windows as fit from 0 on, and one that ends at the end
    starts = [(2 * index * room + last) // (2 * last) for index in range(last + 1)] if last else [0]
    inner = [
        starts[index] if blended else (starts[index - 1] + starts[index] + size + 1) // 2
        for index in range(1, len(starts))
    ]
    return Axis(length, size, tuple(starts), (0, *inner, length), blended)


def _distance(size: int) -> NDArray[np.float64]:
    """From each pixel's centre to the nearer edge of its window."""
    places = np.arange(size) + 0.5
    nearer: NDArray[np.float64] = np.minimum(places, size - places)
    return nearer
