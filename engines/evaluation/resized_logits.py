"""Logits at the size of an image, and what is made of them: labels, or a sum of probabilities.

Everything is done a few rows at a time: at an image's size K classes take 4 * K bytes a pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, Tuple

import numpy as np

from engines.errors import InputError
from engines.resize import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]  # (K, H, W), K outputs; of a batch (N, K, H, W)
else:
    Logits = np.ndarray

# Values of a block: 1 MB of float32, so that it stays in the cache through all its steps.
_BLOCK_VALUES = 262_144


class ProbabilitySum:
    """Softmax of several logits of one image, added at its size `hw`: mmsegmentation's SegTTAModel.

    https://github.com/open-mmlab/mmsegmentation/blob/v1.2.2/mmseg/models/segmentors/seg_tta.py
    `values` (K, H, W) take 4 * K * H * W bytes, and a few blocks come to that for a while.
    """

    def __init__(self, hw: Tuple[int, int], *, align_corners: bool = False) -> None:
        """`align_corners` is that of the head, for resizing."""
        self._hw, self._align_corners = hw, align_corners
        self.values: Logits = np.zeros((0, *hw), np.float32)

    def add(self, logits: Logits, *, flip: bool = False) -> None:
        """Resize (K, h, w) to the image, mirrored back first with `flip`, and add its softmax."""
        if not len(self.values):
            self.values = np.zeros((len(logits), *self._hw), np.float32)
        source = logits[:, :, ::-1] if flip else logits
        for rows, block in resized_blocks(source, self._hw, align_corners=self._align_corners):
            block = block - block.max(axis=0)
            np.exp(block, out=block)
            block /= block.sum(axis=0)
            self.values[:, rows] += block

    def labels(self) -> Labels:
        """The class of the largest sum, (H, W) uint8; at least one must have been added."""
        labels: Labels = self.values.argmax(axis=0).astype(np.uint8)
        return labels


def labels_from_logits(
    logits: Logits, hw: Tuple[int, int], *, align_corners: bool = False
) -> Labels:
    """Labels (H, W) uint8 of logits (K, h, w) resized to `hw`, bilinearly as PyTorch does it.

    Raises InputError for a size below 1.
    """
    _check_size(hw)
    labels = np.empty(hw, np.uint8)
    for rows, block in resized_blocks(logits, hw, align_corners=align_corners):
        labels[rows] = block.argmax(axis=0)
    return labels


def resized_blocks(
    logits: Logits, hw: Tuple[int, int], *, align_corners: bool
) -> Iterator[Tuple[slice, Logits]]:
    """Rows of `logits` (K, h, w) at the size `hw`: which ones, and (K, rows, W), to be read only.

    Raises InputError for a size below 1.
    """
    _check_size(hw)
    step = max(1, _BLOCK_VALUES // (len(logits) * hw[1]))
    blocks = [slice(start, min(start + step, hw[0])) for start in range(0, hw[0], step)]
    if logits.shape[1:] == tuple(hw):
        yield from ((rows, logits[:, rows]) for rows in blocks)
        return
    uppers, lowers, shares = _taps(logits.shape[1], hw[0], align_corners)
    left, right, weight = _taps(logits.shape[2], hw[1], align_corners)
    for rows in blocks:
        share = shares[rows, np.newaxis]
        mixed = logits[:, uppers[rows]] * (1 - share)
        mixed += logits[:, lowers[rows]] * share
        block = mixed.take(left, axis=2)
        block *= 1 - weight
        other = mixed.take(right, axis=2)
        other *= weight
        block += other
        yield rows, block


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


def _check_size(hw: Tuple[int, int]) -> None:
    if min(hw) < 1:
        raise InputError(f"size {tuple(hw)}", expected="1 or more", do="give another size")
