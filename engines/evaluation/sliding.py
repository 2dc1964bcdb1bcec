"""Sliding-window inference as mmsegmentation does it: overlapping windows, logits averaged.

https://github.com/open-mmlab/mmsegmentation/blob/v1.2.2/mmseg/models/segmentors/encoder_decoder.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Protocol, Sequence, Tuple

import numpy as np

from engines.bundle import Bundle
from engines.errors import ConfigError, InputError
from engines.evaluation.evaluate import Prediction
from engines.resize import Image, Labels, ResizeRule, resize_bilinear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]  # (K, H, W), K outputs; of a batch (N, K, H, W)
else:
    Logits = np.ndarray

# Rows resized at a time: K * 64 * width * 4 bytes, once more for the indices.
_BLOCK_ROWS = 64


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

        mmsegmentation resizes by its test pipeline first, which checkpoints do not hold, and
        shrinks the window where the image is smaller, which a graph of fixed size cannot.
        """
        scale = max(1.0, self.size[0] / image_hw[0], self.size[1] / image_hw[1])
        height = max(self.size[0], int(image_hw[0] * scale + 0.5))
        return height, max(self.size[1], int(image_hw[1] * scale + 0.5))


def windows_from_bundle(bundle: Bundle) -> Windows:
    """Windows of the network's input size; the stride it was trained to be tested with.

    Where none is recorded, or one for windows of another size, two thirds of the window.
    """
    size = bundle.input.hw
    thirds = max(1, 2 * size[0] // 3), max(1, 2 * size[1] // 3)
    crop: object = bundle.test_mode.get("crop_size")
    stride: Any = bundle.test_mode.get("stride")
    usable = isinstance(stride, list) and len(stride) == 2 and crop in (None, list(size))
    if not usable or not all(type(stride[i]) is int and 1 <= stride[i] <= size[i] for i in (0, 1)):
        return Windows(size, thirds)
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
        yield band / (down[top:following, np.newaxis] * across)


def sliding_labels(
    logits_of: Callable[[Image], Logits],
    image: Image,
    windows: Windows,
    *,
    batch: int = 1,
    align_corners: bool = False,
) -> Labels:
    """Labels (H, W) uint8 of an image (H, W, C) uint8 of any size, newly allocated.

    An image with a side shorter than the window's is enlarged for the windows and its logits are
    resized back, K * enlarged height * enlarged width * 4 bytes; others need `logit_bands`'s
    memory only. `align_corners` is that of the head, for resizing back.
    """
    image_hw = (image.shape[0], image.shape[1])
    cut_hw = windows.image_hw(image_hw)
    if cut_hw == image_hw:
        bands = logit_bands(logits_of, image, windows, batch=batch)
        return np.concatenate([band.argmax(axis=0).astype(np.uint8) for band in bands])
    enlarged = resize_bilinear(image, cut_hw)
    bands = logit_bands(logits_of, enlarged, windows, batch=batch)
    logits = np.concatenate(list(bands), axis=1)
    return labels_from_logits(logits, image_hw, align_corners=align_corners)


def labels_from_logits(
    logits: Logits, hw: Tuple[int, int], *, align_corners: bool = False
) -> Labels:
    """Labels (H, W) uint8 of logits (K, h, w) resized to `hw`, bilinearly as PyTorch does it.

    The resized logits are made a few rows at a time. Raises InputError for a size below 1.
    """
    if min(hw) < 1:
        raise InputError(f"size {tuple(hw)}", expected="1 or more", do="give another size")
    rows = _taps(logits.shape[1], hw[0], align_corners)
    left, right, weight = _taps(logits.shape[2], hw[1], align_corners)
    labels = np.empty(hw, np.uint8)
    for start in range(0, hw[0], _BLOCK_ROWS):
        upper, lower, share = (tap[start : start + _BLOCK_ROWS] for tap in rows)
        share = share[:, np.newaxis]
        mixed = logits[:, upper] * (1 - share) + logits[:, lower] * share
        resized = mixed[:, :, left] * (1 - weight) + mixed[:, :, right] * weight
        labels[start : start + _BLOCK_ROWS] = resized.argmax(axis=0)
    return labels


class LogitsPredictor(Protocol):
    """A predictor that gives logits: ONNX Runtime and TensorRT alike."""

    @property
    def name(self) -> str:
        """Its row in tables."""

    @property
    def has_logits(self) -> bool:
        """Whether the graph has that output."""

    def logits(self, batch: Image) -> Logits:
        """(N, K, H, W) float32 of a batch (N, H, W, C) uint8."""


class SlidingPredictor:
    """Runs another predictor on windows: give it whole images (`evaluate_predictors` can).

    The predictor stays the caller's to close. Attributes: `name`, `windows`, and how much was run
    so far, `window_count` and `image_count`.
    """

    def __init__(self, predictor: LogitsPredictor, windows: Windows, *, batch: int = 1) -> None:
        """`batch` windows are run at once; ConfigError for a predictor without logits."""
        if not predictor.has_logits:
            raise ConfigError(
                f"{predictor.name}, which gives labels only",
                expected="logits: sliding windows are averaged before the labels are chosen",
                do="export the model with --output logits or --output both, or use --mode whole",
            )
        self.name, self.windows = predictor.name, windows
        self.window_count = self.image_count = 0
        self._predictor, self._batch = predictor, batch

    def predict(self, image: Image, image_hw: Tuple[int, int], rule: ResizeRule) -> Prediction:
        """Labels of a whole image (H, W, C), `image_hw` its size; `rule` is not used."""
        if image.shape[:2] != tuple(image_hw):
            raise InputError(
                f"an image of {image.shape[0]}x{image.shape[1]} that stands for one of "
                f"{image_hw[0]}x{image_hw[1]}",
                expected="the whole image",
                do="pass whole_images to evaluate_predictors",
            )
        labels = sliding_labels(self._logits, image, self.windows, batch=self._batch)
        self.image_count += 1
        return Prediction(network=labels, image=labels)

    def _logits(self, batch: Image) -> Logits:
        self.window_count += len(batch)
        return self._predictor.logits(batch)


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
        found = logits_of(np.stack([rows[:, left : left + width] for left in group]))
        if found.ndim != 4 or (len(found), *found.shape[2:]) != (len(group), height, width):
            raise InputError(
                f"logits of shape {found.shape} for {len(group)} windows",
                expected=f"({len(group)}, K, {height}, {width})",
                do="export the model again: its logits must be as large as its input",
            )
        if sums is None:
            sums = np.zeros((found.shape[1], height, rows.shape[1]), np.float32)
        for place, left in enumerate(group):
            sums[:, :, left : left + width] += found[place]
    assert sums is not None  # there is at least one window
    return sums


def _taps(
    size: int, output: int, align_corners: bool
) -> Tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each output index two source indices and the weight of the second one.

    https://github.com/pytorch/pytorch/blob/v2.4.0/aten/src/ATen/native/UpSample.h
    """
    index = np.arange(output, dtype=np.float64)
    if align_corners:
        position = index * ((size - 1) / (output - 1) if output > 1 else 0.0)
    else:
        position = np.maximum((index + 0.5) * (size / output) - 0.5, 0.0)
    first = np.minimum(position.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    return first, second, (position - first).astype(np.float32)
