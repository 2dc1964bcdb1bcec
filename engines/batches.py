"""What every predictor promises about a batch: names, checks, pieces and padding."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Tuple

import numpy as np

from engines.errors import InputError

INPUT_NAME = "image"
BANDS_NAME = "bands"
OUTPUT_NAME = "labels"
LOGITS_NAME = "logits"

# A graph has one of these inputs: (N, H, W, C) images, or the (N, h, w, B) bands that a graph of
# `riceseg export --fuse-bands` composes into images itself.
INPUT_DTYPES: Mapping[str, Any] = {INPUT_NAME: np.uint8, BANDS_NAME: np.float32}

Batch = Any  # an array for one of these inputs


def check_batch(batch: Any, hw: Tuple[int, int], channels: int, *, dtype: Any = np.uint8) -> None:
    """InputError unless `batch` is (N, *hw, channels) of `dtype` with N of 1 or more."""
    height, width = hw
    wanted = (height, width, channels)
    bands = dtype != np.uint8
    if not isinstance(batch, np.ndarray) or batch.dtype != dtype:
        kind = getattr(batch, "dtype", None) or type(batch).__name__
        raise InputError(
            f"a batch of {kind}",
            expected="a numpy array of float32, the bands as they were measured"
            if bands
            else "a numpy array of uint8, RGB values 0..255",
            do="use .astype(numpy.float32); for uint8 composites open the bundle without fused=True"
            if bands
            else "do not normalise (the graph does it), and use .astype(numpy.uint8)",
        )
    if batch.ndim == 4 and batch.shape[1:] == wanted and len(batch) > 0:
        return
    if batch.shape == wanted:
        advice = "add the batch axis: image[numpy.newaxis]"
    elif batch.ndim == 4 and batch.shape[1:] == (channels, height, width):
        advice = "put the channels last: batch.transpose(0, 2, 3, 1)"
    elif bands and batch.ndim == 4 and batch.shape[3] == channels and len(batch) > 0:
        advice = (
            "give scenes of that size, export with it, or open the bundle without fused=True, "
            "which takes any size"
        )
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


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """Views of at most `size` images each, in order."""
    for start in range(0, len(batch), size):
        yield batch[start : start + size]


def padded(images: Batch, size: int) -> Batch:
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
