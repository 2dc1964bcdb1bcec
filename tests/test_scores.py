"""Scores: counted pixel by pixel in plain Python, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.errors import DatasetError, InputError
from engines.evaluation.scores import (
    Scores,
    agreement,
    confusion_from_labels,
    scores_from_confusion,
)


def labels(*rows: list[int]) -> NDArray[np.uint8]:
    return np.array(rows, np.uint8)


def counted(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], num_outputs: int
) -> list[list[int]]:
    matrix = [[0] * num_outputs for _ in range(num_outputs)]
    for found, true in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if true != 255:
            matrix[true][found] += 1
    return matrix


def scored(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], num_classes: int
) -> tuple[list[float], list[float], float, float, float]:
    """From the sets of pixels, without a matrix."""
    pixels = [
        (found, true)
        for found, true in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True)
        if true != 255
    ]
    iou, acc = [], []
    for label in range(num_classes):
        both = sum(1 for found, true in pixels if found == label and true == label)
        either = sum(1 for found, true in pixels if found == label or true == label)
        in_truth = sum(1 for _, true in pixels if true == label)
        iou.append(100 * both / either if either else math.nan)
        acc.append(100 * both / in_truth if in_truth else math.nan)
    named = [(found, true) for found, true in pixels if true < num_classes]
    right = sum(1 for found, true in named if found == true)
    return iou, acc, mean(iou), mean(acc), 100 * right / len(named) if named else math.nan


def mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 11), st.integers(0, 2**32 - 1))
def test_confusion_and_scores_are_what_counting_pixel_by_pixel_gives(
    num_outputs: int, unnamed: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
    prediction = rng.integers(0, num_outputs, shape, dtype=np.uint8)
    truth = rng.integers(0, num_outputs, shape, dtype=np.uint8)
    truth[rng.random(shape) < 0.2] = 255
    num_classes = max(1, num_outputs - unnamed)

    confusion = confusion_from_labels(prediction, truth, num_outputs)
    assert confusion.tolist() == counted(prediction, truth, num_outputs)
    scores = scores_from_confusion(confusion, num_classes)
    iou, acc, miou, macc, aacc = scored(prediction, truth, num_classes)
    assert scores.iou == pytest.approx(iou, nan_ok=True)
    assert scores.acc == pytest.approx(acc, nan_ok=True)
    assert scores.miou == pytest.approx(miou, nan_ok=True)
    assert scores.macc == pytest.approx(macc, nan_ok=True)
    assert scores.aacc == pytest.approx(aacc, nan_ok=True)


def test_rows_are_truth_and_columns_prediction_and_255_is_left_out() -> None:
    confusion = confusion_from_labels(labels([1, 1, 0, 0]), labels([0, 1, 255, 0]), 2)
    assert confusion.tolist() == [[1, 1], [0, 1]]
    assert confusion.dtype == np.int64


@pytest.mark.parametrize("num_outputs", [1, 2, 150, 254, 255])
def test_the_largest_label_is_counted_in_the_last_cell(num_outputs: int) -> None:
    last = np.full((3, 5), num_outputs - 1, np.uint8)
    confusion = confusion_from_labels(last, last, num_outputs)
    assert confusion.shape == (num_outputs, num_outputs)
    assert confusion[-1, -1] == confusion.sum() == 15


def test_a_large_image_is_counted_whole() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, (700, 1001), dtype=np.uint8)
    prediction = rng.integers(0, 6, (700, 1001), dtype=np.uint8)
    confusion = confusion_from_labels(prediction, truth, 6)
    for row in range(6):
        for column in range(6):
            expected = np.count_nonzero((truth == row) & (prediction == column))
            assert confusion[row, column] == expected


def test_views_that_are_not_contiguous_are_counted_in_place() -> None:
    truth = labels([0, 1], [1, 1])
    confusion = confusion_from_labels(truth.T[::-1], truth.T[::-1], 2)
    assert confusion.tolist() == [[1, 0], [0, 3]]


def test_scores_of_three_classes_by_hand() -> None:
    confusion = np.array([[50, 10, 0], [5, 30, 5], [0, 0, 0]])
    scores = scores_from_confusion(confusion)
    # 50 / (60 + 55 - 50), 30 / (40 + 40 - 30), 0 / (0 + 5 - 0)
    assert scores.iou == pytest.approx((5000 / 65, 60.0, 0.0))
    # Class 2 was predicted but is not in truth: its IoU counts, its accuracy does not exist.
    assert scores.acc == pytest.approx((5000 / 60, 75.0, math.nan), nan_ok=True)
    assert scores.miou == pytest.approx((5000 / 65 + 60.0) / 3)
    assert scores.macc == pytest.approx((5000 / 60 + 75.0) / 2)
    assert scores.aacc == pytest.approx(80.0)


def test_a_class_that_is_nowhere_is_left_out_of_both_means() -> None:
    scores = scores_from_confusion(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert math.isnan(scores.iou[2])
    assert math.isnan(scores.acc[2])
    assert scores.miou == pytest.approx((75.0 + 80.0) / 2)
    assert scores.macc == pytest.approx((75.0 + 100.0) / 2)
    assert scores.aacc == pytest.approx(87.5)


def test_a_pixel_predicted_as_an_unnamed_output_is_a_miss() -> None:
    # Two named classes, three outputs: 2 of the 10 pixels of class 1 were given to output 2.
    scores = scores_from_confusion(np.array([[10, 0, 0], [0, 8, 2], [0, 0, 0]]), num_classes=2)
    assert scores.iou == pytest.approx((100.0, 80.0))
    assert scores.acc == pytest.approx((100.0, 80.0))
    assert scores.aacc == pytest.approx(90.0)


def test_an_unnamed_class_in_truth_counts_where_a_named_one_was_predicted() -> None:
    scores = scores_from_confusion(np.array([[6, 0, 0], [0, 9, 0], [4, 0, 7]]), num_classes=2)
    assert scores.iou == pytest.approx((60.0, 100.0))
    assert scores.acc == pytest.approx((100.0, 100.0))
    assert scores.aacc == pytest.approx(100.0)


def test_scores_of_no_pixel_are_nan_and_make_no_warning() -> None:
    scores = scores_from_confusion(np.zeros((2, 2), np.int64))
    numbers = (*scores.iou, *scores.acc, scores.miou, scores.macc, scores.aacc)
    assert len(numbers) == 7
    assert all(math.isnan(number) for number in numbers)


def test_a_perfect_prediction_scores_100() -> None:
    truth = labels([0, 1, 2], [2, 1, 255])
    scores = scores_from_confusion(confusion_from_labels(np.minimum(truth, 2), truth, 3))
    assert scores == Scores((100.0,) * 3, (100.0,) * 3, 100.0, 100.0, 100.0)


def test_truth_beyond_the_outputs_is_refused_with_the_labels_named() -> None:
    truth = labels([0, 3, 4, 5, 254, 255])
    with pytest.raises(
        DatasetError, match=r"4 labels .*: 3, 4, 5, \.\.\.; expected 0\.\.2, or 255"
    ):
        confusion_from_labels(np.zeros_like(truth), truth, 3)
    with pytest.raises(DatasetError, match=r"1 labels .*: 254; expected 0\.\.253"):
        confusion_from_labels(np.zeros_like(truth), truth, 254)


@pytest.mark.parametrize("label", [3, 255])
def test_a_prediction_beyond_the_outputs_is_refused_even_where_truth_is_ignored(label: int) -> None:
    with pytest.raises(InputError, match=f"a predicted label {label}; expected labels below 3"):
        confusion_from_labels(labels([label]), labels([255]), 3)


def test_labels_of_another_dtype_or_shape_are_refused() -> None:
    truth = labels([0, 1])
    with pytest.raises(InputError, match="labels of int64; expected uint8"):
        confusion_from_labels(truth.astype(np.int64), truth, 2)
    with pytest.raises(InputError, match=r"shapes \(1, 2\) and \(2, 1\)"):
        confusion_from_labels(truth, truth.T, 2)
    with pytest.raises(InputError, match=r"shapes \(1, 2\) and \(2, 1\)"):
        agreement(truth, truth.T)


@pytest.mark.parametrize("num_outputs", [0, 256])
def test_a_number_of_outputs_that_uint8_labels_cannot_name_is_refused(num_outputs: int) -> None:
    with pytest.raises(InputError, match=f"{num_outputs} outputs; expected 1..255"):
        confusion_from_labels(labels([0]), labels([0]), num_outputs)


def test_more_names_than_outputs_and_a_matrix_that_is_not_square_are_refused() -> None:
    with pytest.raises(InputError, match=r"3 classes; expected 1\.\.2"):
        scores_from_confusion(np.zeros((2, 2), np.int64), num_classes=3)
    with pytest.raises(InputError, match=r"shape \(2, 3\); expected as many rows as columns"):
        scores_from_confusion(np.zeros((2, 3), np.int64))


def test_agreement_is_the_percent_of_equal_pixels() -> None:
    assert agreement(labels([0, 1, 2, 3]), labels([0, 1, 2, 0])) == 75.0
    assert agreement(labels([255]), labels([255])) == 100.0
    with pytest.raises(InputError, match="labels of no pixel"):
        agreement(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
