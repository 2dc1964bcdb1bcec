"""From an image of any size to the network's input and back: the only resizing in this project.

numpy only, and the same numbers on every machine: `resize_bilinear` does the integer arithmetic of
OpenCV's INTER_LINEAR for uint8, which mmsegmentation trains and tests with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Sequence, Tuple

import numpy as np

from engines.errors import ConfigError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]  # (H, W, C) RGB or other channels last; a batch is (N, H, W, C)
    Labels = NDArray[np.uint8]  # (H, W) class index; 255 = ignore, in truth only
else:
    Image = Labels = np.ndarray  # numpy 1.20 has no NDArray.

KINDS = ("stretch", "letterbox")

# Weights have 11 bits, as in OpenCV (INTER_RESIZE_COEF_BITS).
_ONE = np.float32(2048)

# Output rows at a time, so that intermediate int32 values stay in the cache. 640x480 -> 512x512:
# 2.5 ms with 64 rows, 6.7 ms or more with all 512 (2 cores, numpy 2.4).
_BLOCK_ROWS = 64


@dataclass(frozen=True)
class ResizeRule:
    """How an image fills the network's input; sizes are (height, width) in pixels.

    "stretch" gives it exactly that size. "letterbox" keeps the ratio of its sides, makes it as
    large as fits and pads right and bottom. Raises ConfigError for another kind.
    """

    kind: Literal["stretch", "letterbox"]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"resize rule {self.kind!r}", expected=" or ".join(KINDS), do="use one of these"
            )

    def fitted_hw(self, image_hw: Tuple[int, int], input_hw: Tuple[int, int]) -> Tuple[int, int]:
        """Size that the image itself takes inside `input_hw`, both sides 1 or more.

        Letterbox rounds as mmcv's `rescale_size` does: int(side * scale + 0.5).
        """
        _check_hw(image_hw)
        _check_hw(input_hw)
        if self.kind == "stretch":
            return int(input_hw[0]), int(input_hw[1])
        scale = min(input_hw[0] / image_hw[0], input_hw[1] / image_hw[1])
        height, width = (max(1, math.floor(side * scale + 0.5)) for side in image_hw)
        return height, width


def network_image_from_image(
    image: Image, input_hw: Tuple[int, int], rule: ResizeRule, pad_value: Sequence[int]
) -> Image:
    """The network's input (input_hw[0], input_hw[1], C) uint8 from an image (H, W, C) uint8.

    Newly allocated and contiguous; `image` is only read. `pad_value` has one 0..255 for each
    channel, used by letterbox. Raises InputError when the image or `pad_value` does not fit.
    """
    _check_image(image)
    if len(pad_value) != image.shape[2]:
        raise InputError(
            f"an image of {image.shape[2]} channels and {len(pad_value)} padding values",
            expected="one padding value for each channel",
            do="give an image with the channels that the network takes",
        )
    fitted_hw = rule.fitted_hw((image.shape[0], image.shape[1]), input_hw)
    fitted = resize_bilinear(image, fitted_hw)
    if fitted_hw == tuple(input_hw):
        return fitted
    padded = np.empty((input_hw[0], input_hw[1], image.shape[2]), np.uint8)
    padded[:] = np.asarray(pad_value, np.uint8)
    padded[: fitted_hw[0], : fitted_hw[1]] = fitted
    return padded


def labels_at_image_size(labels: Labels, image_hw: Tuple[int, int], rule: ResizeRule) -> Labels:
    """Labels (H, W) uint8 at network resolution -> at `image_hw`, without letterbox padding.

    Nearest neighbour. Newly allocated and contiguous; `labels` is only read.
    """
    _check_labels(labels)
    height, width = rule.fitted_hw(image_hw, (labels.shape[0], labels.shape[1]))
    return resize_nearest(labels[:height, :width], image_hw)


def resize_bilinear(image: Image, hw: Tuple[int, int]) -> Image:
    """Bilinear, half-pixel centres, edges repeated, no antialiasing: (H, W, C) -> (*hw, C) uint8.

    Equal to `cv2.resize` (INTER_LINEAR) on every pixel in OpenCV 5.0 on x86, but for halving with
    more than 4 channels (1 level). Newly allocated and contiguous; `image` is only read. Each
    output pixel takes 4 source pixels: a larger source costs no more but the copy of those rows.
    """
    _check_image(image)
    _check_hw(hw)
    height, width, channels = image.shape
    if (height, width) == tuple(hw):
        return np.array(image, order="C")
    if image.strides[2] < 0:
        # A camera's BGR turned by [:, :, ::-1] is dear to gather: 24 ms in place of 7 at 4000x3000.
        return np.ascontiguousarray(resize_bilinear(image[:, :, ::-1], hw)[:, :, ::-1])
    down, across = _taps(height, hw[0]), _taps(width, hw[1])
    # OpenCV clips columns with their weight and rows without; seen in the last bit only.
    inside = (across.first >= 0) & (across.first < width - 1)
    right_weight = np.repeat(np.where(inside, across.weight, 0), channels)
    left_weight = np.repeat(np.where(inside, across.first_weight, 2048), channels)
    left = _offsets(np.clip(across.first, 0, width - 1), channels)
    right = _offsets(np.clip(across.first + 1, 0, width - 1), channels)

    resized = np.empty((hw[0], hw[1] * channels), np.uint8)
    for start in range(0, hw[0], _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        pairs = np.stack([down.first[block], down.first[block] + 1]).clip(0, height - 1)
        needed, where = np.unique(pairs.ravel(), return_inverse=True)
        rows = image[needed].reshape(len(needed), width * channels)
        mixed = np.multiply(rows.take(left, axis=1), left_weight, dtype=np.int32)
        mixed += np.multiply(rows.take(right, axis=1), right_weight, dtype=np.int32)
        mixed >>= 4
        upper, lower = where.reshape(pairs.shape)
        total = _scaled(mixed[upper], down.first_weight[block])
        total += _scaled(mixed[lower], down.weight[block])
        total += 2
        total >>= 2
        resized[block] = total
    return resized.reshape(hw[0], hw[1], channels)


def resize_nearest(labels: Labels, hw: Tuple[int, int]) -> Labels:
    """The label under each output pixel's centre: source index floor((i + 0.5) * source / output).

    (H, W) uint8 -> hw uint8, newly allocated and contiguous; `labels` is only read.
    """
    _check_labels(labels)
    _check_hw(hw)
    rows = _nearest(labels.shape[0], hw[0])
    columns = _nearest(labels.shape[1], hw[1])
    # The gather along a row is the dear one: on as few rows as possible.
    if hw[0] < labels.shape[0]:
        return np.take(labels[rows], columns, axis=1)
    return np.take(np.take(labels, columns, axis=1), rows, axis=0)


class _Taps(NamedTuple):
    """For each output index the source index `first`, -1 to size - 1, and 11-bit weights (int32).

    `first_weight` belongs to `first`, `weight` to the index after it.
    """

    first: NDArray[np.int64]
    first_weight: NDArray[np.int32]
    weight: NDArray[np.int32]


def _taps(size: int, output: int) -> _Taps:
    # OpenCV computes the position in float64 and keeps it, and the weight, in float32.
    position = ((np.arange(output) + 0.5) * (size / output) - 0.5).astype(np.float32)
    first = np.floor(position)
    weight = position - first
    return _Taps(
        first.astype(np.int64),
        np.rint((np.float32(1) - weight) * _ONE).astype(np.int32),
        np.rint(weight * _ONE).astype(np.int32),
    )


def _offsets(columns: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """Index of each value of these pixels in a row of width * channels values."""
    return (columns[:, np.newaxis] * channels + np.arange(channels)).ravel()


def _scaled(rows: NDArray[np.int32], weight: NDArray[np.int32]) -> NDArray[np.int32]:
    """Rows times one weight each, without the lowest 16 bits; changes `rows`."""
    rows *= weight[:, np.newaxis]
    rows >>= 16
    return rows


def _nearest(size: int, output: int) -> NDArray[np.int64]:
    return (2 * np.arange(output, dtype=np.int64) + 1) * size // (2 * output)


def _check_hw(hw: Tuple[int, int]) -> None:
    if len(hw) != 2 or min(hw) < 1:
        raise InputError(
            f"size {tuple(hw)}",
            expected="(height, width) in pixels, both 1 or more",
            do="give another size",
        )


def _check_image(image: Any) -> None:
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3):
        raise InputError(
            _described(image), expected="an image (H, W, C) of uint8", do="convert the array"
        )
    if image.size == 0:
        raise InputError(_described(image), expected="at least one pixel", do="leave it out")


def _check_labels(labels: Any) -> None:
    if not (isinstance(labels, np.ndarray) and labels.dtype == np.uint8 and labels.ndim == 2):
        raise InputError(
            _described(labels), expected="labels (H, W) of uint8", do="convert the array"
        )
    if labels.size == 0:
        raise InputError(_described(labels), expected="at least one pixel", do="leave them out")


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with shape {value.shape}"
    return f"an object of type {type(value).__name__}"
