"""64 bits that stay nearly the same when a photo is compressed, scaled or made brighter."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
_SIDE, _KEPT = 32, 8

Hashes: TypeAlias = "NDArray[np.uint64]"  # (N,)

_FREQUENCY, _PLACE = np.arange(_KEPT)[:, np.newaxis], np.arange(_SIDE)[np.newaxis]
_COSINES = np.cos(np.pi * (2 * _PLACE + 1) * _FREQUENCY / (2 * _SIDE))  # DCT-II, 8 of 32 rows
_ONES_OF_16_BITS = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


def perceptual_hash(grey: NDArray[np.uint8] | NDArray[np.float32]) -> int:
    """The DCT hash of a picture (H, W), 0..255: 0 to 2**64 - 1.

    Of the picture at 32x32 the 8x8 lowest frequencies: a bit for each, row by row and the highest
    bit first, whether it is above the median of all but the first, which is the brightness. It
    does not know a picture that is turned or mirrored.
    """
    small = Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    frequencies = (_COSINES @ np.asarray(small, np.float64) @ _COSINES.T).ravel()
    # In a plain picture all but the first are 0, and what is left of them is the processor's own.
    frequencies = np.round(frequencies, 3)
    bits = frequencies > np.median(frequencies[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def different_bits(one: int, others: Hashes) -> NDArray[Any]:
    """In how many of the 64 bits each of `others` differs from `one`, (N,)."""
    different = others ^ np.uint64(one)
    # numpy counts bits itself from 2.0 on; this takes older ones too.
    quarters = different.view(np.uint16).reshape(len(others), 4)
    return np.asarray(_ONES_OF_16_BITS[quarters].sum(axis=1, dtype=np.int64))
