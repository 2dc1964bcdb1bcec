"""Score several predictors on the same labelled images in one pass: mIoU and pixel agreement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import (
    Callable,
    List,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

import numpy as np

from engines.bundle import InputSpec
from engines.dataset import Pair
from engines.errors import DatasetError, ImageError, InputError
from engines.images import image_from_file, mask_from_file
from engines.resize import Image, Labels, ResizeRule, network_image_from_image
from engines.scores import IGNORE, Scores, confusion_from_labels, scores_from_confusion

WORST_IMAGES = 6


class Prediction(NamedTuple):
    """Labels of one image, uint8: at network resolution (H, W), padding included, and at its own.

    `image` may come from upsampled logits; it need not be `network` enlarged.
    """

    network: Labels
    image: Labels


class Predictor(Protocol):
    """What can be evaluated: PyTorch, ONNX Runtime and TensorRT alike."""

    @property
    def name(self) -> str:
        """Its row in tables."""

    def predict(
        self, network_image: Image, image_hw: Tuple[int, int], rule: ResizeRule
    ) -> Prediction:
        """Labels of `network_image`, (H, W, C) uint8, which stands for an image of `image_hw`.

        It must not be changed; the result must stay as it is while other predictors run.
        """


class Row(NamedTuple):
    """One predictor's result; `agreement` is the percent of pixels equal to the first one's."""

    name: str
    scores: Scores
    agreement: float


class WorstImage(NamedTuple):
    """An image on which the last predictor agrees least with the first one, in percent."""

    image: Path
    mask: Path
    agreement: float


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate_predictors`.

    `rows` in the order of the predictors; `images` counts those scored; `worst` holds up to 6, the
    lowest agreement first, none with a single predictor; `skipped` has "file name: reason".
    """

    rows: Tuple[Row, ...]
    images: int
    worst: Tuple[WorstImage, ...]
    skipped: Tuple[str, ...]


def evaluate_predictors(
    predictors: Sequence[Predictor],
    pairs: Sequence[Pair],
    *,
    input: InputSpec,
    num_outputs: int,
    num_classes: int,
    reduce_zero_label: bool = False,
    convert_images: bool = False,
    skip_bad: bool = False,
    on_image: Optional[Callable[[int, int], None]] = None,
) -> Evaluation:
    """Run every predictor on every image; each image is decoded and resized once.

    mIoU is taken at the image's own size, one confusion matrix per predictor over all images;
    agreement at network resolution, over all pixels but letterbox padding, with the first
    predictor. With `reduce_zero_label` truth 0 becomes 255 (ignored) and the others go down by 1.
    `on_image(done, total)` is called after each image. Memory does not grow with their number.

    Raises ImageError or DatasetError for an unreadable image or mask, unless `skip_bad`; then it
    is left out and named in `skipped`. DatasetError in any case when the sizes of image and mask
    differ, a mask holds a class that the network does not have, or nothing is left to score.
    """
    if not predictors:
        raise InputError("no predictor", expected="one or more", do="name what to evaluate")
    tallies = [_Tally(predictor, num_outputs) for predictor in predictors]
    worst: List[WorstImage] = []
    skipped: List[str] = []
    for done, pair in enumerate(pairs, start=1):
        try:
            image = image_from_file(pair.image, channels=input.channels, convert=convert_images)
            truth = mask_from_file(pair.mask)
        except (ImageError, DatasetError) as error:
            if not skip_bad:
                raise
            skipped.append(f"{pair.image.name}: {error}")
        else:
            if reduce_zero_label:
                truth = _without_zero_label(truth)
            agreement = _score_image(tallies, image, truth, pair, input)
            worst = _lowest([*worst, WorstImage(pair.image, pair.mask, agreement)])
        if on_image is not None:
            on_image(done, len(pairs))
    images = len(pairs) - len(skipped)
    if images == 0:
        raise DatasetError(
            f"{len(pairs)} images, {len(skipped)} of them skipped",
            expected="at least one readable image with a mask",
            do=f"repair the first one ({skipped[0]})" if skipped else "give a labelled folder",
        )
    rows = tuple(
        Row(
            tally.predictor.name,
            scores_from_confusion(tally.confusion, num_classes),
            tally.agreement(),
        )
        for tally in tallies
    )
    return Evaluation(rows, images, tuple(worst) if len(predictors) > 1 else (), tuple(skipped))


class _Tally:
    """Running sums of one predictor: a (num_outputs, num_outputs) matrix and two pixel counts."""

    def __init__(self, predictor: Predictor, num_outputs: int) -> None:
        self.predictor, self.num_outputs = predictor, num_outputs
        self.confusion = np.zeros((num_outputs, num_outputs), np.int64)
        self.equal = self.compared = 0

    def agreement(self) -> float:
        return 100.0 * self.equal / self.compared

    def add(self, prediction: Labels, truth: Labels, seen: Labels, reference: Labels) -> float:
        """Count one image; returns its own agreement in percent."""
        self.confusion += confusion_from_labels(prediction, truth, self.num_outputs)
        equal = int(np.count_nonzero(seen == reference))
        self.equal += equal
        self.compared += reference.size
        return 100.0 * equal / reference.size


def _score_image(
    tallies: Sequence[_Tally],
    image: Image,
    truth: Labels,
    pair: Pair,
    input: InputSpec,
) -> float:
    """Add one image to every tally; returns the last predictor's agreement in percent."""
    image_hw = (image.shape[0], image.shape[1])
    if truth.shape != image_hw:
        raise DatasetError(
            f"image {pair.image.name!r} of {image_hw[1]}x{image_hw[0]} pixels (width x height) "
            f"and mask {pair.mask.name!r} of {truth.shape[1]}x{truth.shape[0]}",
            expected="the same size",
            do="make the mask again from this image, or remove the pair",
        )
    network_image = network_image_from_image(image, input.hw, input.rule, input.pad_value)
    height, width = input.rule.fitted_hw(image_hw, input.hw)
    agreement, reference = 100.0, None
    for tally in tallies:
        prediction = tally.predictor.predict(network_image, image_hw, input.rule)
        seen = prediction.network[:height, :width]
        reference = seen if reference is None else reference
        try:
            agreement = tally.add(prediction.image, truth, seen, reference)
        except DatasetError as error:
            raise DatasetError(
                f"in {pair.mask.name!r}: {error.got}", expected=error.expected, do=error.do
            ) from error
    return agreement


def _without_zero_label(truth: Labels) -> Labels:
    """mmsegmentation's reduce_zero_label: 0 and 255 become 255, the others go down by 1."""
    reduced = truth - np.uint8(1)  # 0 wraps around to 255, which is what it has to become.
    reduced[truth == IGNORE] = IGNORE
    return reduced


def _lowest(found: List[WorstImage]) -> List[WorstImage]:
    """The first few by agreement; among equals the earlier image stays."""
    return sorted(found, key=lambda item: item.agreement)[:WORST_IMAGES]
