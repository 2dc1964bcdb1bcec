"""mIoU as mmsegmentation defines it: all scores follow from one confusion matrix of the whole set.

https://github.com/open-mmlab/mmsegmentation/blob/v1.2.2/mmseg/evaluation/metrics/iou_metric.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Tuple

import numpy as np

from engines.errors import DatasetError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engines.resize import Labels

IGNORE = 255

# Pixels counted at a time: np.bincount makes 8 bytes of each.
_BLOCK_PIXELS = 1 << 18


@dataclass(frozen=True)
class Scores:
    """Percent, 0..100, of each named class and of all; NaN where there is nothing to divide by.

    `iou` is NaN for a class that is neither in truth nor predicted, `acc` (the share of its pixels
    that were found) for one that is not in truth; `miou` and `macc` are means over the others.
    `aacc` is the share of all labelled pixels that were right.
    """

    iou: Tuple[float, ...]
    acc: Tuple[float, ...]
    miou: float
    macc: float
    aacc: float


def confusion_from_labels(prediction: Labels, truth: Labels, num_outputs: int) -> NDArray[np.int64]:
    """Pixels by class, (num_outputs, num_outputs) int64: rows are truth, columns prediction.

    Both arrays are uint8 of one shape. Pixels with truth 255 are not counted. Raises DatasetError
    for any other truth that is not below `num_outputs`; InputError for a prediction that is not,
    for another dtype, for different shapes and unless `num_outputs` is 1..255.
    """
    _check_labels(prediction, truth)
    if not 1 <= num_outputs <= IGNORE:
        raise InputError(f"{num_outputs} outputs", expected="1..255", do="use another model")
    if prediction.size and int(prediction.max()) >= num_outputs:
        raise InputError(
            f"a predicted label {prediction.max()}",
            expected=f"labels below {num_outputs}, the model's number of outputs",
            do="check that this model and this number of classes belong together",
        )
    flat_truth, flat_prediction = truth.ravel(), prediction.ravel()
    counts = np.zeros(256 * num_outputs, np.int64)
    for start in range(0, truth.size, _BLOCK_PIXELS):
        block = slice(start, start + _BLOCK_PIXELS)
        pair = np.multiply(flat_truth[block], num_outputs, dtype=np.uint16)  # At most 255 * 255,
        pair += flat_prediction[block]  # and 254 more are less than 2**16.
        counts += np.bincount(pair, minlength=counts.size)
    by_truth = counts.reshape(256, num_outputs)
    unknown = num_outputs + np.flatnonzero(by_truth[num_outputs:IGNORE].any(axis=1))
    if unknown.size:
        shown = ", ".join(str(label) for label in unknown[:3]) + (", ..." * (unknown.size > 3))
        raise DatasetError(
            f"{unknown.size} labels that the network does not have: {shown}",
            expected=f"0..{num_outputs - 1}, or 255 where there is no label",
            do="use masks that hold the class indices of the training",
        )
    return by_truth[:num_outputs].copy()


def scores_from_confusion(
    confusion: NDArray[np.int64], num_classes: Optional[int] = None
) -> Scores:
    """Scores of the first `num_classes` classes, the named ones; None takes all.

    Rows are truth, columns prediction. A pixel of a named class predicted as an unnamed one is a
    miss; a pixel of an unnamed class counts only where it was predicted as a named one.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise InputError(
            f"a confusion matrix of shape {confusion.shape}",
            expected="as many rows as columns",
            do="make it with confusion_from_labels",
        )
    named = confusion.shape[0] if num_classes is None else num_classes
    if not 1 <= named <= confusion.shape[0]:
        raise InputError(
            f"{named} classes",
            expected=f"1..{confusion.shape[0]}, the model's number of outputs",
            do="name at most one class for each output",
        )
    right = np.diagonal(confusion)[:named].astype(np.float64)
    in_truth = confusion.sum(axis=1)[:named]
    predicted = confusion.sum(axis=0)[:named]
    iou = _percent(right, in_truth + predicted - right)
    acc = _percent(right, in_truth)
    return Scores(
        iou=tuple(iou.tolist()),
        acc=tuple(acc.tolist()),
        miou=_mean(iou),
        macc=_mean(acc),
        aacc=float(_percent(right.sum(), in_truth.sum())),
    )


def agreement(a: Labels, b: Labels) -> float:
    """Percent of pixels with the same label; both uint8 of one shape, not empty."""
    _check_labels(a, b)
    if a.size == 0:
        raise InputError("labels of no pixel", expected="one or more", do="leave them out")
    return 100.0 * np.count_nonzero(a == b) / a.size


def _percent(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """100 * part / whole, NaN where whole is 0."""
    whole = np.asarray(whole, np.float64)
    return 100.0 * part / np.where(whole > 0, whole, np.nan)


def _mean(percent: NDArray[np.float64]) -> float:
    known = percent[~np.isnan(percent)]
    return float(known.mean()) if known.size else float("nan")


def _check_labels(first: Labels, second: Labels) -> None:
    for labels in (first, second):
        if labels.dtype != np.uint8:
            raise InputError(f"labels of {labels.dtype}", expected="uint8", do="convert the array")
    if first.shape != second.shape:
        raise InputError(
            f"labels of shapes {first.shape} and {second.shape}",
            expected="the same shape",
            do="bring the prediction to the size of the image",
        )
