"""What every predictor promises about a batch: names, checks, pieces and padding."""

from __future__ import annotations

from typing import Any, Iterator, Tuple

import numpy as np

from engines.errors import InputError
from engines.resize import Image

INPUT_NAME = "image"
OUTPUT_NAME = "labels"
LOGITS_NAME = "logits"


def check_batch(batch: Any, hw: Tuple[int, int], channels: int) -> None:
    """InputError unless `batch` is (N, *hw, channels) uint8 with N of 1 or more."""
    height, width = hw
    wanted = (height, width, channels)
    if not isinstance(batch, np.ndarray) or batch.dtype != np.uint8:
        kind = getattr(batch, "dtype", None) or type(batch).__name__
        raise InputError(
            f"a batch of {kind}",
            expected="a numpy array of uint8, RGB values 0..255",
            do="do not normalise (the graph does it), and use .astype(numpy.uint8)",
        )
    if batch.ndim == 4 and batch.shape[1:] == wanted and len(batch) > 0:
        return
    if batch.shape == wanted:
        advice = "add the batch axis: image[numpy.newaxis]"
    elif batch.ndim == 4 and batch.shape[1:] == (channels, height, width):
        advice = "put the channels last: batch.transpose(0, 2, 3, 1)"
    elif batch.ndim == 4 and batch.shape[3] == channels and len(batch) > 0:
        advice = (
            "resize with engines.resize.network_image_from_image, "
            "or use engines.segmenter.Segmenter, which takes any size"
        )
    else:
        advice = "give a batch of images with the channels last"
    raise InputError(
        f"a batch of shape {batch.shape}",
        expected=f"(N, {height}, {width}, {channels}) with N of 1 or more",
        do=advice,
    )


def pieces(batch: Image, size: int) -> Iterator[Image]:
    """Views of at most `size` images each, in order."""
    for start in range(0, len(batch), size):
        yield batch[start : start + size]


def padded(images: Image, size: int) -> Image:
    """`images` followed by repetitions of the last one up to `size`; their results are dropped."""
    if len(images) >= size:
        return images
    return np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])


def closed_error(name: str) -> InputError:
    """What every call after `close` raises."""
    return InputError(
        f"a call to {name!r} after close()",
        expected="an open predictor",
        do="call close() last, or open it again",
    )
