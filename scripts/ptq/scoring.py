"""mIoU and agreement with FP32, by this project's scorer and once more without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from engines.bundle import Bundle
from engines.dataset import Pair
from engines.errors import GateError
from engines.evaluation.evaluate import Prediction, evaluate_predictors
from engines.images import sha256_of_file
from engines.onnx_predictor import OnnxPredictor
from engines.resize import Image, Labels, ResizeRule

CLOSE = 1e-9  # percent; both ways count the same pixels


@dataclass(frozen=True)
class Score:
    """miou in percent at the images' own size; agreement in percent of the pixels at the network's.

    labels: (H, W) uint8 at the network's size, one for each image.
    """

    miou: float
    agreement: float
    labels: list[Labels]


class _Recorder:
    """A predictor that keeps the labels it gave."""

    def __init__(self, predictor: OnnxPredictor) -> None:
        self._predictor, self.name = predictor, predictor.name
        self.labels: list[Labels] = []

    def predict(
        self, network_image: Image, image_hw: tuple[int, int], rule: ResizeRule
    ) -> Prediction:
        prediction = self._predictor.predict(network_image, image_hw, rule)
        self.labels.append(prediction.network)
        return prediction


def scored(
    graph: Path,
    bundle: Bundle,
    pairs: Sequence[Pair],
    *,
    reference: Sequence[Labels] | None,
    on_image: Callable[[int, int], None],
) -> Score:
    """Of one graph on ONNX Runtime's CPU; `reference`: FP32's labels, None for FP32 itself.

    Raises GateError when the two ways of scoring differ.
    """
    known = {}
    if reference is not None:
        hashes = [sha256_of_file(pair.image) for pair in pairs]
        known = dict(zip(hashes, reference, strict=True))
    with OnnxPredictor(graph) as predictor:
        recorder = _Recorder(predictor)
        (row,) = evaluate_predictors(
            [recorder],
            pairs,
            input=bundle.input,
            num_outputs=bundle.num_outputs,
            num_classes=len(bundle.classes),
            reduce_zero_label=bundle.reduce_zero_label,
            references=known.get if reference is not None else None,
            on_image=on_image,
        ).rows
    agreement = 100.0 if reference is None else row.agreement
    again = (
        plain_miou(recorder.labels, pairs, len(bundle.classes)),
        plain_agreement(recorder.labels, recorder.labels if reference is None else reference),
    )
    check_same(graph.name, (row.scores.miou, agreement), again)
    return Score(row.scores.miou, agreement, recorder.labels)


def check_same(name: str, ours: tuple[float, float], plain: tuple[float, float]) -> None:
    """GateError unless mIoU and agreement are the same both ways."""
    if not np.allclose(ours, plain, rtol=0, atol=CLOSE):
        raise GateError(f"{name}: mIoU and agreement {ours}, counted again {plain}")


def plain_miou(labels: Sequence[Labels], pairs: Sequence[Pair], classes: int) -> float:
    """Percent, with numpy alone: nearest neighbour to the mask's size, 255 ignored.

    For images that were stretched to the network's size, and as many outputs as classes.
    """
    confusion = np.zeros(classes * classes, np.int64)
    for predicted, pair in zip(labels, pairs, strict=True):
        with PillowImage.open(pair.mask) as file:
            mask = np.array(file)
        down, across = (nearest(*sides) for sides in zip(predicted.shape, mask.shape, strict=True))
        resized = predicted[np.ix_(down, across)]
        counted = mask < classes
        cells = mask[counted].astype(np.int64) * classes + resized[counted]
        confusion += np.bincount(cells, minlength=classes * classes)
    square = confusion.reshape(classes, classes)
    right = np.diag(square).astype(np.float64)
    either = square.sum(0) + square.sum(1) - np.diag(square)
    return float(100.0 * np.mean(right[either > 0] / either[either > 0]))


def nearest(size: int, output: int) -> list[int]:
    """The source index under each output pixel's centre.

    In exact numbers: Pillow's own NEAREST rounds positions that fall on an edge, every fifth one
    from 512 to 640, to either side.
    """
    step = Fraction(size, output)
    return [math.floor((i + Fraction(1, 2)) * step) for i in range(output)]


def plain_agreement(labels: Sequence[Labels], reference: Sequence[Labels]) -> float:
    """Percent of all pixels of all images."""
    equal: Any = [np.mean(a == b) for a, b in zip(labels, reference, strict=True)]
    return float(100.0 * np.mean(equal))
