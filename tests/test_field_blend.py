"""Windows over a raster, their weights, and labels from their blended logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from field_rasters import (
    WINDOW,
    Weights,
    expected_sums,
    network_of,
    read_labels,
    rice,
    starts_of,
    write_raster,
)

from engines.errors import ConfigError, GraphError
from engines.field.blend import labels_from_sums
from engines.field.grid import axis_of_windows
from engines.field.run import FieldOptions, segment_field
from engines.progress import SilentProgress

LENGTHS = (32, 33, 47, 56, 57, 64, 100, 333)
OVERLAPS = (0.0, 0.25, 0.3, 0.5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_windows_lie_inside_cover_everything_and_overlap_enough(
    length: int, overlap: float
) -> None:
    axis = axis_of_windows(length, WINDOW, overlap, blended=True)
    assert list(axis.starts) == starts_of(length, WINDOW, int(np.ceil(WINDOW * overlap)))
    assert axis.starts[0] == 0
    assert axis.starts[-1] + WINDOW == length
    assert all(
        0 < second - first <= WINDOW - WINDOW * overlap
        for first, second in zip(axis.starts[:-1], axis.starts[1:], strict=True)
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_weights_sum_to_one_at_every_pixel(length: int, overlap: float) -> None:
    axis = axis_of_windows(length, WINDOW, overlap, blended=True)
    total, count = np.zeros(length), np.zeros(length)
    for index, start in enumerate(axis.starts):
        total[start : start + WINDOW] += axis.weights(index)
        count[start : start + WINDOW] += 1
    assert np.abs(total - 1).max() < 1e-6
    assert (total[count == 1] == 1).all()


def test_a_window_weighs_less_towards_its_edge_in_equal_steps() -> None:
    axis = axis_of_windows(32 + 24 + 24, 32, 0.25, blended=True)
    steps = (np.arange(8) + 0.5) / 8
    assert axis.starts == (0, 24, 48)
    assert np.allclose(axis.weights(0), np.concatenate([np.ones(24), steps[::-1]]), atol=1e-6)
    assert np.allclose(
        axis.weights(1), np.concatenate([steps, np.ones(16), steps[::-1]]), atol=1e-6
    )


@pytest.mark.parametrize("length", LENGTHS)
def test_without_logits_each_pixel_belongs_to_the_window_with_the_nearest_centre(
    length: int,
) -> None:
    axis = axis_of_windows(length, WINDOW, 0.25, blended=False)
    centres = np.array(axis.starts) + WINDOW / 2
    nearest = np.abs(np.arange(length)[:, None] + 0.5 - centres).argmin(axis=1)
    owner = np.repeat(np.arange(len(centres)), np.diff(axis.edges))
    assert (owner == nearest).all()


@pytest.mark.parametrize("overlap", [-0.1, 0.51, float("nan")])
def test_an_overlap_outside_its_range_is_refused(overlap: float) -> None:
    with pytest.raises(ConfigError, match=r"0 to 0\.5"):
        axis_of_windows(100, 32, overlap, blended=True)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("hw", [(150, 201), (32, 57), (47, 40)])
def test_labels_are_those_of_the_weighted_mean_of_all_windows(
    tmp_path: Path, hw: tuple[int, int], overlap: float
) -> None:
    image, predictor = rice(hw), Weights()
    source = write_raster(tmp_path / "field.tif", image)
    out = tmp_path / "labels.tif"
    segment_field(network_of(predictor), source, out, FieldOptions(overlap), SilentProgress())
    sums = expected_sums(predictor, image, int(np.ceil(WINDOW * overlap)))
    best = np.sort(sums, axis=0)
    clear = best[-1] - best[-2] > 1e-2
    assert clear.mean() > 0.99
    assert len(np.unique(sums.argmax(axis=0))) == 5
    assert (read_labels(out) == sums.argmax(axis=0))[clear].all()


def test_labels_of_a_network_without_logits_are_taken_from_the_nearest_window(
    tmp_path: Path,
) -> None:
    image, predictor = rice((100, 120)), Weights(has_logits=False)
    source, out = write_raster(tmp_path / "field.tif", image), tmp_path / "labels.tif"
    segment_field(network_of(predictor), source, out, FieldOptions(), SilentProgress())
    expected = np.empty(image.shape[:2], np.uint8)
    nearest = [_nearest_starts(length) for length in image.shape[:2]]
    for top in set(nearest[0]):
        for left in set(nearest[1]):
            window = image[top : top + WINDOW, left : left + WINDOW]
            own = np.ix_(
                *[np.flatnonzero(nearest[axis] == start) for axis, start in enumerate((top, left))]
            )
            whole = np.zeros(image.shape[:2], np.uint8)
            whole[top : top + WINDOW, left : left + WINDOW] = predictor.of_window(window).argmax(0)
            expected[own] = whole[own]
    assert (read_labels(out) == expected).all()


def _nearest_starts(length: int) -> np.ndarray:
    """For each pixel the start of the window whose centre is nearest."""
    starts = np.array(starts_of(length, WINDOW, 8))
    centres = starts + WINDOW / 2
    return starts[np.abs(np.arange(length)[:, None] + 0.5 - centres).argmin(axis=1)]


def test_the_largest_sum_wins_and_of_equal_ones_the_first() -> None:
    rng = np.random.default_rng(0)
    sums = rng.integers(0, 4, (7, 70, 45)).astype(np.float32)
    sums[:, 0, 0] = -np.inf
    sums[3, 0, 1] = np.inf
    assert (labels_from_sums(sums, None, 255) == sums.argmax(axis=0)).all()


def test_255_classes_fit_into_the_labels() -> None:
    sums = np.zeros((255, 3, 255), np.float32)
    sums[np.arange(255), :, np.arange(255)] = 1
    assert (labels_from_sums(sums, None, 255) == np.arange(255)).all()


def test_pixels_without_data_are_nodata_whatever_the_sums_are() -> None:
    sums = np.zeros((3, 40, 8), np.float32)
    sums[:, 5, 5] = np.nan
    valid = np.ones((40, 8), np.bool_)
    valid[5, 5] = valid[39, 0] = False
    labels = labels_from_sums(sums, valid, 255)
    assert (labels == np.where(valid, 0, 255)).all()


def test_logits_that_are_no_numbers_are_an_error() -> None:
    sums = np.zeros((3, 40, 8), np.float32)
    sums[1, 35, 5] = np.nan
    with pytest.raises(GraphError, match="not finite"):
        labels_from_sums(sums, np.ones((40, 8), np.bool_), 255)
