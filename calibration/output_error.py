"""How far the answers of one graph are from those of another, without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.image_session import ImageSession
from calibration.onnx_file import logits_tensor
from calibration.ranges import Image
from calibration.wiring import wiring_of
from engines.errors import DatasetError, GraphError

# Where both graphs answer the same; float32 itself is good for some 140 dB.
MOST_DB = 150.0

Answer = tuple[NDArray[np.float32], NDArray[np.uint8]]  # logits (K, h, w), labels (H, W)


def answers_of(model: onnx.ModelProto, images: Iterable[Image]) -> Iterator[Answer]:
    """The answer to each image, (H, W, C) uint8 at the network's input size.

    The logits are those before the last Resize, which needs a sixteenth of the memory.
    GraphError where they are not finite.
    """
    logits = _small_logits_tensor(model)
    outputs = [value.name for value in model.graph.output]
    labels = "labels" if "labels" in outputs else logits_tensor(model)
    session = ImageSession(model, (logits, labels))
    for image in images:
        values = session.values(image)
        if not np.isfinite(values[0]).all():
            raise GraphError(
                f"values that are not finite in {logits}",
                expected="finite logits",
                do="look at the checkpoint's weights and at the images",
            )
        answer = values[1] if values[1].ndim == 3 else values[1].argmax(axis=1)
        yield values[0][0], answer[0].astype(np.uint8)


def _small_logits_tensor(model: onnx.ModelProto) -> str:
    producers = wiring_of(model.graph).producers
    name = logits_tensor(model)
    while name in producers and producers[name].op_type == "Resize":
        name = producers[name].input[0]
    return name


def error_of(expected: Iterable[Answer], got: Iterable[Answer]) -> tuple[float, float]:
    """SQNR of the logits in dB and agreement of the labels in percent, over all images together.

    SQNR is 10 log10 of the energy of the expected logits over that of the difference, -150 to 150.
    DatasetError for no images.
    """
    signal = noise = 0.0
    equal = pixels = 0
    for (logits, labels), (other_logits, other_labels) in zip(expected, got, strict=True):
        signal += float(np.square(logits, dtype=np.float64).sum())
        noise += float(np.square(logits - other_logits, dtype=np.float64).sum())
        equal += int(np.count_nonzero(labels == other_labels))
        pixels += labels.size
    if not pixels:
        raise DatasetError(
            "no image to compare answers on",
            expected="one at least that can be read",
            do="look at the images that were left out",
        )
    return _decibels(signal, noise), 100.0 * equal / pixels


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return MOST_DB
    if signal == 0:
        return -MOST_DB
    return min(max(10.0 * math.log10(signal / noise), -MOST_DB), MOST_DB)
