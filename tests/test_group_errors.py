"""What INT8 costs in each group alone: against values by hand, and against the written file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.group_errors import EVERYTHING, group_errors, policies_by_group
from calibration.group_ranges import group_ranges
from calibration.groups import GROUPS_BY_KIND
from calibration.layer_fix import LayerFix
from calibration.output_error import answers_of, error_of
from calibration.placement import EVERY_LAYER
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import Ranges, TensorRange, ranges_from_images
from engines.errors import DatasetError, GraphError
from tests.small_graphs import block_model, model_from_text, outputs_of, random_images, saved

# class 0 where the pixel is above 66.67, else class 1
TWO_LAYERS = """
<ir_version: 8, opset_import: ["" : 17]>
two_layers (uint8[{batch}, 2, 2, 1] image) => (uint8[{batch}, 2, 2] labels)
{{
  pixels = Cast <to = 1> (image)
  planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
  ["/first"] seen = Conv <kernel_shape = [1, 1]> (planes, w_first)
  ["/last"] logits = Conv <kernel_shape = [1, 1]> (seen, w_last, b_last)
  best = ArgMax <axis = 1, keepdims = 0> (logits)
  labels = Cast <to = 2> (best)
}}
"""
PIXELS = np.array([[0, 66], [67, 255]], dtype=np.uint8)[..., None]
GROUPS = GROUPS_BY_KIND


def two_layers(batch: str = "N", first: float = 1.0) -> onnx.ModelProto:
    return model_from_text(
        TWO_LAYERS.format(batch=batch),
        w_first=np.full((1, 1, 1, 1), first),
        w_last=np.array([1.0, -0.5]).reshape(2, 1, 1, 1),
        b_last=np.array([0.0, 100.0]),
    )


def minmax(path: Path, images: list[np.ndarray], policy=EVERYTHING) -> Ranges:  # type: ignore[no-untyped-def]
    return ranges_from_images(path, images, method="minmax", policy=policy)


@pytest.mark.parametrize("batch", ["N", "1", "3"])
def test_sqnr_agreement_and_macs_are_those_worked_out_by_hand(tmp_path: Path, batch: str) -> None:
    path = saved(two_layers(batch), tmp_path)
    first, last = group_errors(path, [PIXELS], minmax(path, [PIXELS]), GROUPS)
    # Weights of one value per channel are exact in int8; only the activation is rounded, to
    # multiples of 255 / 127: 66 and 67 both become 33 steps.
    before = PIXELS.astype(np.float64).ravel()
    after = np.rint(before * 127 / 255) * 255 / 127
    assert after[1] == after[2] == 33 * 255 / 127
    logits = [np.stack([x, 100 - x / 2]) for x in (before, after)]
    signal = (logits[0] ** 2).sum()
    noise = ((logits[0] - logits[1]) ** 2).sum()
    for error in (first, last):
        assert error.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-3)
        assert error.agreement == 75.0  # 67 falls below the limit
    assert (first.name, first.nodes) == ("first", ("/first",))
    assert (last.name, last.nodes) == ("classifier", ("/last",))
    # one multiplication per pixel against two
    assert (first.macs_percent, last.macs_percent) == pytest.approx((100 / 3, 200 / 3))


def test_each_group_is_what_the_written_file_of_that_group_answers(tmp_path: Path) -> None:
    path = saved(block_model(), tmp_path)
    images = random_images(3)
    ranges = minmax(path, images)
    errors = group_errors(path, images, ranges, GROUPS)
    policies = policies_by_group(block_model(), GROUPS)
    assert [error.name for error in errors] == [group.name for group in GROUPS]
    batch = np.stack(images)
    expected = outputs_of(path, batch)
    for error in errors:
        out = tmp_path / f"{error.name}.onnx"
        record = int8_onnx_from_ranges(path, ranges, out, policy=policies[error.name])
        got = outputs_of(out, batch)
        assert error.nodes == record.nodes
        assert error.macs_percent == pytest.approx(record.int8_macs_percent)
        difference = expected["logits"].astype(np.float64) - got["logits"]
        ratio = np.square(expected["logits"]).sum() / np.square(difference).sum()
        assert error.sqnr_db == pytest.approx(10 * math.log10(ratio), abs=0.01)
        equal = (expected["labels"] == got["labels"]).mean()
        assert error.agreement == pytest.approx(100 * equal)
    assert sum(error.macs_percent for error in errors) == pytest.approx(100)


def test_only_what_the_policy_quantizes_is_tried(tmp_path: Path) -> None:
    path = saved(block_model(), tmp_path)
    images = random_images(2)
    ranges = minmax(path, images, EVERY_LAYER)
    errors = group_errors(path, images, ranges, GROUPS, policy=EVERY_LAYER)
    assert [error.name for error in errors] == [
        "first",
        "classifier",
        "depthwise",
        "conv",
        "linear",
    ]


def test_fixes_are_applied(tmp_path: Path) -> None:
    path = saved(two_layers(), tmp_path)
    shifted = LayerFix(weight=None, scales=None, bias_shift=np.array([0, 1000], np.float32))
    ranges = minmax(path, [PIXELS])
    (_, last) = group_errors(path, [PIXELS], ranges, GROUPS, fixes={"logits": shifted})
    assert last.agreement == 50.0  # class 1 everywhere


def test_the_number_of_groups_done_is_told_before_the_first_and_after_each(tmp_path: Path) -> None:
    path = saved(two_layers(), tmp_path)
    told: list[tuple[int, int]] = []
    group_errors(
        path,
        [PIXELS],
        minmax(path, [PIXELS]),
        GROUPS,
        on_group=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_no_images_are_refused(tmp_path: Path) -> None:
    path = saved(two_layers(), tmp_path)
    with pytest.raises(DatasetError, match="no images to compare INT8 with FP32 on"):
        group_errors(path, [], minmax(path, [PIXELS]), GROUPS)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(GraphError, match="not finite in logits"):
        list(answers_of(two_layers(first=3e38), [PIXELS]))


# --- the measure


def answer(logits: list[float], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(logits, np.float32), np.array(labels, np.uint8)


def test_images_count_together_in_both_measures() -> None:
    expected = [answer([3.0, 4.0], [0, 1, 1, 1]), answer([0.0, 5.0], [1, 1])]
    got = [answer([3.0, 4.5], [0, 1, 1, 0]), answer([0.0, 5.0], [1, 1])]
    sqnr_db, agreement = error_of(expected, got)
    assert sqnr_db == pytest.approx(10 * math.log10((9 + 16 + 25) / 0.25))
    assert agreement == pytest.approx(100 * 5 / 6)


@pytest.mark.parametrize(
    ("expected", "got", "db"),
    [([1.0], [1.0], 150.0), ([0.0], [1.0], -150.0), ([0.0], [0.0], 150.0), ([1e-30], [1e9], -150)],
)
def test_sqnr_stays_a_number_of_at_most_150_db(
    expected: list[float], got: list[float], db: float
) -> None:
    assert error_of([answer(expected, [0])], [answer(got, [0])])[0] == db


def test_a_different_number_of_answers_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="zip"):
        error_of([answer([1.0], [0])], [])


def test_logits_are_taken_before_they_are_enlarged_and_labels_after() -> None:
    model = model_from_text(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        enlarged (uint8[N, 2, 2, 2] image) => (float[N, 2, 4, 4] logits)
        <float[1] any_roi = {0}, float[4] twice = {1, 1, 2, 2}>
        {
          pixels = Cast <to = 1> (image)
          small = Transpose <perm = [0, 3, 1, 2]> (pixels)
          logits = Resize <mode = "nearest"> (small, any_roi, twice)
        }
        """
    )
    image = np.array([[[1, 2], [4, 3]], [[5, 6], [7, 8]]], np.uint8)
    ((logits, labels),) = answers_of(model, [image])
    assert logits.tolist() == [[[1, 4], [5, 7]], [[2, 3], [6, 8]]]
    assert labels.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


# --- the ranges of a group


def test_the_ranges_of_a_group_are_the_extremes_over_its_layers(tmp_path: Path) -> None:
    model = block_model()
    path = saved(model, tmp_path)
    found = group_ranges(model, minmax(path, random_images(2)), GROUPS, policy=EVERYTHING)
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    linear = max(float(np.abs(weights[name]).max()) for name in ("w_q", "w_proj", "w_fc1"))
    assert found["linear"].weight_max == linear
    assert found["product"].weight_max is found["residual"].weight_max is None
    assert found["product"].weight_outlier_percent is None
    # The product of the softmax reads 0 to 1, and others go beyond; min-max keeps all of it.
    for group in found.values():
        largest = max(abs(group.activation_low), abs(group.activation_high))
        assert group.clip == pytest.approx(largest)
        assert group.outlier_percent is None  # not counted with min-max
    assert (found["first"].activation_low, found["first"].activation_high) == (0.0, 255.0)


def test_outliers_are_those_of_the_tensor_with_the_most_of_them() -> None:
    # 400 weights of 0.1 and one of 10: the root mean square is 0.51, and 6 of it are 3.1.
    weights = np.full((401, 1, 1, 1), 0.1)
    weights[7] = -10.0
    model = model_from_text(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        wide (uint8[N, 1, 1, 1] image) => (float[N, 1, 1, 1] logits)
        {
          pixels = Cast <to = 1> (image)
          ["/a"] wide = Conv <kernel_shape = [1, 1]> (pixels, w_wide)
          ["/b"] between = Conv <kernel_shape = [1, 1]> (wide, w_between)
          ["/c"] logits = Conv <kernel_shape = [1, 1]> (between, w_out)
        }
        """,
        w_wide=weights,
        w_between=np.ones((2, 401, 1, 1)),
        w_out=np.ones((1, 2, 1, 1)),
    )
    ranges = Ranges(
        "mse",
        1,
        {
            "pixels": TensorRange(0.0, 255.0, 250.0, 0.25),
            "wide": TensorRange(-3.0, 9.0, 8.0, 0.5),
            "between": TensorRange(-4.0, 2.0, 3.0, None),
        },
    )
    groups = (GROUPS[3],)  # every convolution
    (found,) = group_ranges(model, ranges, groups, policy=EVERYTHING).values()
    assert found.weight_max == 10.0
    assert found.weight_outlier_percent == pytest.approx(100 / 401)
    assert (found.activation_low, found.activation_high, found.clip) == (-4.0, 255.0, 250.0)
    assert found.outlier_percent == 0.5
