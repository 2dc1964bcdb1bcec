"""Sliding-window inference as mmsegmentation does it: overlapping windows, logits averaged.

https://github.com/open-mmlab/mmsegmentation/blob/v1.2.2/mmseg/models/segmentors/encoder_decoder.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from engines.bundle import Bundle
from engines.errors import ConfigError, InputError
from engines.evaluation.resized_logits import Logits
from engines.resize import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Windows:
    """Windows of `size` every `stride` pixels, both (height, width), mmsegmentation's crop_size.

    Raises ConfigError unless 1 <= stride <= size: a larger one would leave gaps.
    """

    size: Tuple[int, int]
    stride: Tuple[int, int]

    def __post_init__(self) -> None:
        if not all(1 <= self.stride[axis] <= self.size[axis] for axis in (0, 1)):
            raise ConfigError(
                f"windows of {self.size[0]}x{self.size[1]} every {self.stride[0]}x{self.stride[1]}",
                expected="a stride of 1 up to the window's side",
                do="use two thirds of the window",
            )

    def starts(self, image_hw: Tuple[int, int]) -> Tuple[List[int], List[int]]:
        """First row and first column of the windows in an image that is as large as one or larger.

        The last ones are shifted back inside, so every window is whole.
        """
        return (
            _starts(image_hw[0], self.size[0], self.stride[0]),
            _starts(image_hw[1], self.size[1], self.stride[1]),
        )

    def image_hw(self, image_hw: Tuple[int, int]) -> Tuple[int, int]:
        """The size at which an image is cut: its own, enlarged, ratio kept, if a side is too short.

        mmsegmentation shrinks the window instead (`within`), which a graph of fixed size cannot.
        """
        scale = max(1.0, self.size[0] / image_hw[0], self.size[1] / image_hw[1])
        height = max(self.size[0], int(image_hw[0] * scale + 0.5))
        return height, max(self.size[1], int(image_hw[1] * scale + 0.5))

    def within(self, image_hw: Tuple[int, int]) -> Windows:
        """No larger than the image, as mmsegmentation cuts it: one window along a short side."""
        height, width = (min(self.size[axis], image_hw[axis]) for axis in (0, 1))
        return Windows((height, width), (min(self.stride[0], height), min(self.stride[1], width)))

    def count(self, image_hw: Tuple[int, int]) -> int:
        """How many windows an image has that is as large as one or larger."""
        tops, lefts = self.starts(image_hw)
        return len(tops) * len(lefts)


def windows_of_size(size: Tuple[int, int], stride: Optional[Tuple[int, int]] = None) -> Windows:
    """Without a stride it is two thirds of the window."""
    thirds = max(1, 2 * size[0] // 3), max(1, 2 * size[1] // 3)
    return Windows(size, stride or thirds)


def windows_from_bundle(bundle: Bundle) -> Windows:
    """Windows of the network's input size; the stride it was trained to be tested with.

    Where none is recorded, or one for windows of another size, two thirds of the window.
    """
    size = bundle.input.hw
    crop: object = bundle.test_mode.get("crop_size")
    stride: Any = bundle.test_mode.get("stride")
    usable = isinstance(stride, list) and len(stride) == 2 and crop in (None, list(size))
    if not usable or not all(type(stride[i]) is int and 1 <= stride[i] <= size[i] for i in (0, 1)):
        return windows_of_size(size)
    return Windows(size, (stride[0], stride[1]))


def logit_bands(
    logits_of: Callable[[Image], Logits], image: Image, windows: Windows, *, batch: int = 1
) -> Iterator[Logits]:
    """The averaged logits of an image (H, W, C) uint8, from top to bottom, in bands (K, rows, W).

    `logits_of` takes windows (N, h, w, C), N up to `batch`, and gives (N, K, h, w) float32. Each
    band is newly allocated, and together they have H rows. One row of windows and one band are in
    memory at a time: 8 * K * window height * W bytes, and not with H. Raises InputError for an
    image smaller than a window and for logits of another shape.
    """
    height, width = image.shape[:2]
    if height < windows.size[0] or width < windows.size[1]:
        raise InputError(
            f"an image of {height}x{width} pixels for windows of "
            f"{windows.size[0]}x{windows.size[1]}",
            expected="an image as large as a window or larger",
            do="enlarge it first (Windows.image_hw)",
        )
    tops, lefts = windows.starts((height, width))
    if len(tops) == len(lefts) == 1:  # nothing to average, and no copy of what may be large
        whole = np.ascontiguousarray(image)[np.newaxis]
        yield _checked_logits(logits_of(whole), 1, windows)[0]
        return
    across = _visits(lefts, windows.size[1], width)
    down = _visits(tops, windows.size[0], height)
    waiting = None  # sums of the rows below `top` that later windows add to
    for index, top in enumerate(tops):
        following = tops[index + 1] if index + 1 < len(tops) else height
        rows = image[top : top + windows.size[0]]
        sums = _row_of_windows(logits_of, rows, lefts, windows, batch)
        if waiting is not None:
            sums[:, : waiting.shape[1]] += waiting
        done = following - top
        band, waiting = sums[:, :done], sums[:, done:]
        band /= down[top:following, np.newaxis] * across
        yield band


def _starts(length: int, size: int, stride: int) -> List[int]:
    count = (max(length - size, 0) + stride - 1) // stride + 1
    return [min(index * stride, length - size) for index in range(count)]


def _visits(starts: Sequence[int], size: int, length: int) -> NDArray[np.float32]:
    """How many windows cover each row or column."""
    counts = np.zeros(length, np.float32)
    for start in starts:
        counts[start : start + size] += 1
    return counts


def _row_of_windows(
    logits_of: Callable[[Image], Logits],
    rows: Image,
    lefts: Sequence[int],
    windows: Windows,
    batch: int,
) -> Logits:
    """Sums (K, window height, W) over the windows that begin in one row."""
    height, width = windows.size
    sums = None
    for index in range(0, len(lefts), batch):
        group = lefts[index : index + batch]
        given = np.stack([rows[:, left : left + width] for left in group])
        found = _checked_logits(logits_of(given), len(group), windows)
        if sums is None:
            sums = np.zeros((found.shape[1], height, rows.shape[1]), np.float32)
        for place, left in enumerate(group):
            sums[:, :, left : left + width] += found[place]
    assert sums is not None  # there is at least one window
    return sums


def _checked_logits(found: Logits, count: int, windows: Windows) -> Logits:
    height, width = windows.size
    if found.ndim != 4 or (len(found), *found.shape[2:]) != (count, height, width):
        raise InputError(
            f"logits of shape {found.shape} for {count} windows",
            expected=f"({count}, K, {height}, {width})",
            do="export the model again: its logits must be as large as its input",
        )
    return found
