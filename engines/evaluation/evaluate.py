"""Score several predictors on the same labelled images in one pass: mIoU and pixel agreement."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
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
from engines.evaluation.scores import IGNORE, Scores, confusion_from_labels, scores_from_confusion
from engines.images import image_from_file, mask_from_file, sha256_of_file
from engines.resize import Image, Labels, ResizeRule, network_image_from_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


# Recorded labels (H, W) uint8 of an image, at network resolution with the padding, by the SHA-256
# (hex) of its file; None where there are none.
References = Callable[[str], Optional[Labels]]


class Row(NamedTuple):
    """One predictor's result; `agreement` is the percent of pixels equal to the reference's.

    The reference is the first predictor, or the recorded labels where those were given; NaN if
    there was nothing to compare with. `scores` follow from `confusion`, of all the network's
    outputs, as `confusion_from_labels` counts.
    """

    name: str
    scores: Scores
    agreement: float
    confusion: NDArray[np.int64]


class WorstImage(NamedTuple):
    """An image on which the last predictor agrees least with the reference, in percent."""

    image: Path
    mask: Path
    agreement: float


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate_predictors`.

    `rows` in the order of the predictors; `images` counts those scored, `compared` those of them
    that agreement was taken on; `worst` holds up to 6, the lowest agreement first, none with a
    single predictor and no recorded labels; `skipped` has "file name: reason"; `images_sha256` is
    `pairs_sha256` of the scored ones.
    """

    rows: Tuple[Row, ...]
    images: int
    worst: Tuple[WorstImage, ...]
    skipped: Tuple[str, ...]
    compared: int
    images_sha256: str


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
    references: Optional[References] = None,
    whole_images: bool = False,
    on_image: Optional[Callable[[int, int], None]] = None,
) -> Evaluation:
    """Run every predictor on every image; each image is decoded and resized once.

    mIoU is taken at the image's own size, one confusion matrix per predictor over all images;
    agreement at network resolution, over all pixels but letterbox padding, with the first
    predictor, or with `references` on the images that they have. `whole_images` gives predictors
    the image as it is, for those that cut it themselves; their `network` labels are then of its
    size, and no image has `references`. With `reduce_zero_label` truth 0 becomes 255 (ignored) and
    the others go down by 1. `on_image(done, total)` is called after each image. Memory does not
    grow with their number.

    Raises ImageError or DatasetError for an unreadable image or mask, unless `skip_bad`; then it
    is left out and named in `skipped`. DatasetError in any case when the sizes of image and mask
    differ, a mask holds a class that the network does not have, or nothing is left to score.
    """
    if not predictors:
        raise InputError("no predictor", expected="one or more", do="name what to evaluate")
    tallies = [_Tally(predictor, num_outputs) for predictor in predictors]
    worst: List[WorstImage] = []
    skipped: List[str] = []
    scored: List[str] = []
    for done, pair in enumerate(pairs, start=1):
        try:
            image = image_from_file(pair.image, channels=input.channels, convert=convert_images)
            truth = mask_from_file(pair.mask)
        except (ImageError, DatasetError) as error:
            if not skip_bad:
                raise
            skipped.append(f"{pair.image.name}: {error}")
        else:
            _check_same_size(image, truth, pair)
            if reduce_zero_label:
                truth = _without_zero_label(truth)
            scored.append(_pair_sha256(pair))
            reference = None if references is None else references(scored[-1][:64])
            sample = _sample(image, truth, None if whole_images else input, reference)
            agreement = _score_sample(tallies, sample, pair, recorded=references is not None)
            if agreement is not None:
                worst = _lowest([*worst, WorstImage(pair.image, pair.mask, agreement)])
        if on_image is not None:
            on_image(done, len(pairs))
    if not scored:
        raise DatasetError(
            f"{len(pairs)} images, {len(skipped)} of them skipped",
            expected="at least one readable image with a mask",
            do=f"repair the first one ({skipped[0]})" if skipped else "give a labelled folder",
        )
    return Evaluation(
        rows=tuple(tally.row(num_classes) for tally in tallies),
        images=len(scored),
        worst=tuple(worst) if len(predictors) > 1 or references is not None else (),
        skipped=tuple(skipped),
        compared=tallies[0].images,
        images_sha256=_sha256_of_lines(scored),
    )


def pairs_sha256(pairs: Sequence[Pair]) -> str:
    """One hash of all image and mask files, whatever their names and order: are they the same?

    SHA-256 over the sorted lines "SHA-256 of the image, space, SHA-256 of its mask".
    """
    return _sha256_of_lines([_pair_sha256(pair) for pair in pairs])


class _Tally:
    """Running sums of one predictor: a (num_outputs, num_outputs) matrix and pixel counts.

    `images` counts those that were compared with a reference.
    """

    def __init__(self, predictor: Predictor, num_outputs: int) -> None:
        self.predictor, self.num_outputs = predictor, num_outputs
        self.confusion = np.zeros((num_outputs, num_outputs), np.int64)
        self.equal = self.compared = self.images = 0

    def row(self, num_classes: int) -> Row:
        agreement = 100.0 * self.equal / self.compared if self.compared else float("nan")
        scores = scores_from_confusion(self.confusion, num_classes)
        return Row(self.predictor.name, scores, agreement, self.confusion)

    def add(self, prediction: Labels, truth: Labels) -> None:
        self.confusion += confusion_from_labels(prediction, truth, self.num_outputs)

    def compare(self, seen: Labels, reference: Labels) -> float:
        """Count the equal pixels of one image; returns its own agreement in percent."""
        equal = int(np.count_nonzero(seen == reference))
        self.equal += equal
        self.compared += reference.size
        self.images += 1
        return 100.0 * equal / reference.size


class _Sample(NamedTuple):
    """What is shown to predictors for one image, and the part of it that agreement is taken on."""

    given: Image
    rule: ResizeRule
    compared_hw: Tuple[int, int]
    truth: Labels
    reference: Optional[Labels]


def _sample(
    image: Image, truth: Labels, input: Optional[InputSpec], reference: Optional[Labels]
) -> _Sample:
    """The image brought to `input`, or as it is without one."""
    image_hw = (image.shape[0], image.shape[1])
    if input is None:
        return _Sample(image, ResizeRule("stretch"), image_hw, truth, None)
    given = network_image_from_image(image, input.hw, input.rule, input.pad_value)
    compared_hw = input.rule.fitted_hw(image_hw, input.hw)
    return _Sample(given, input.rule, compared_hw, truth, reference)


def _score_sample(
    tallies: Sequence[_Tally], sample: _Sample, pair: Pair, *, recorded: bool
) -> Optional[float]:
    """Add one image to every tally; returns the last predictor's agreement in percent, if any.

    The first predictor is the reference unless labels are `recorded`.
    """
    height, width = sample.compared_hw
    image_hw = (sample.truth.shape[0], sample.truth.shape[1])
    reference = None if sample.reference is None else sample.reference[:height, :width]
    agreement: Optional[float] = None
    for tally in tallies:
        prediction = tally.predictor.predict(sample.given, image_hw, sample.rule)
        try:
            tally.add(prediction.image, sample.truth)
        except DatasetError as error:
            raise DatasetError(
                f"in {pair.mask.name!r}: {error.got}", expected=error.expected, do=error.do
            ) from error
        seen = prediction.network[:height, :width]
        if reference is None and not recorded:
            reference = seen
        if reference is not None:
            agreement = tally.compare(seen, reference)
    return agreement


def _check_same_size(image: Image, truth: Labels, pair: Pair) -> None:
    height, width = image.shape[0], image.shape[1]
    if truth.shape != (height, width):
        raise DatasetError(
            f"image {pair.image.name!r} of {width}x{height} pixels (width x height) "
            f"and mask {pair.mask.name!r} of {truth.shape[1]}x{truth.shape[0]}",
            expected="the same size",
            do="make the mask again from this image, or remove the pair",
        )


def _pair_sha256(pair: Pair) -> str:
    return f"{sha256_of_file(pair.image)} {sha256_of_file(pair.mask)}"


def _sha256_of_lines(lines: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()


def _without_zero_label(truth: Labels) -> Labels:
    """mmsegmentation's reduce_zero_label: 0 and 255 become 255, the others go down by 1."""
    reduced = truth - np.uint8(1)  # 0 wraps around to 255, which is what it has to become.
    reduced[truth == IGNORE] = IGNORE
    return reduced


def _lowest(found: List[WorstImage]) -> List[WorstImage]:
    """The first few by agreement; among equals the earlier image stays."""
    return sorted(found, key=lambda item: item.agreement)[:WORST_IMAGES]
