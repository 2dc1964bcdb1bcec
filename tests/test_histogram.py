from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.histogram import (
    BINS,
    MagnitudeHistogram,
    clip_from_entropy,
    clip_from_mse,
    clip_from_percentile,
    outlier_percent,
)


def _histogram(*parts: object) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for part in parts:
        values = np.asarray(part, dtype=np.float32)
        histogram.add(values, float(values.min()), float(values.max()))
    return histogram


def test_each_magnitude_falls_into_its_bin() -> None:
    histogram = _histogram([-1.0, 0.25, 3.9])  # covers 0..4
    assert histogram.width == 4 / BINS
    assert np.flatnonzero(histogram.counts).tolist() == [BINS // 16, BINS // 4, 3993]
    assert (histogram.low, histogram.high) == (np.float32(-1.0), np.float32(3.9))


def test_a_power_of_two_opens_the_next_width_and_is_not_lost() -> None:
    histogram = _histogram([4.0])
    assert histogram.width == 8 / BINS
    assert histogram.counts[BINS // 2] == 1


@settings(max_examples=50, deadline=None)
@given(st.permutations([0.001, 0.7, 5.0, 40.0, 3000.0]), st.integers(0, 2**32 - 1))
def test_the_order_of_the_images_does_not_change_the_counts(scales: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = {scale: rng.normal(0, scale, 500).astype(np.float32) for scale in sorted(scales)}
    grown = _histogram(*(parts[scale] for scale in scales))
    at_once = _histogram(np.concatenate(list(parts.values())))
    assert grown.exponent == at_once.exponent
    assert np.array_equal(grown.counts, at_once.counts)


def test_the_counts_are_those_of_numpys_histogram() -> None:
    values = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)  # several blocks
    histogram = _histogram(values)
    top = histogram.width * BINS
    expected, _ = np.histogram(np.abs(values).astype(np.float64), bins=BINS, range=(0.0, top))
    assert np.array_equal(histogram.counts, expected)


def test_a_first_image_of_zeros_does_not_coarsen_the_bins() -> None:
    assert _histogram([0.0], [1e-5]).width < 1e-8


@pytest.mark.parametrize("value", [1e-42, 1e-30, 3e38])
def test_extreme_magnitudes_are_counted_once(value: float) -> None:
    histogram = _histogram([value, -value, 0.0])
    assert histogram.counts.sum() == 3
    assert math.isfinite(histogram.width)


def test_percentile_100_is_the_largest_magnitude() -> None:
    assert clip_from_percentile(_histogram([-7.3, 1.0]), 100.0) == pytest.approx(7.3)


def test_the_percentile_is_that_of_the_sorted_values_to_a_bin() -> None:
    values = np.random.default_rng(1).normal(0, 1, 100_000).astype(np.float32)
    histogram = _histogram(values)
    for percentile in (90.0, 99.0, 99.9):
        expected = np.percentile(np.abs(values), percentile)
        assert clip_from_percentile(histogram, percentile) == pytest.approx(
            expected, abs=2 * histogram.width
        )


def test_one_outlier_in_a_million_does_not_set_the_percentile() -> None:
    values = np.random.default_rng(2).uniform(-1, 1, 1_000_000).astype(np.float32)
    values[0] = 1000.0
    assert clip_from_percentile(_histogram(values), 99.999) < 1.5


def _mean_squared_error(values: np.ndarray, clip: float) -> float:
    step = clip / 127
    return float(np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2))


def test_the_mse_clip_is_as_good_as_a_search_over_the_values_themselves() -> None:
    values = np.random.default_rng(3).laplace(0, 1, 50_000)
    clip = clip_from_mse(_histogram(values))
    best = min(_mean_squared_error(values, c) for c in np.linspace(1, np.abs(values).max(), 500))
    assert _mean_squared_error(values, clip) < 1.02 * best


def test_the_mse_clip_keeps_evenly_spread_values() -> None:
    values = np.linspace(-1, 1, 100_001)
    assert clip_from_mse(_histogram(values)) == pytest.approx(1.0, abs=0.01)


def _divergence_by_loops(counts: np.ndarray, i: int) -> float:
    """Step by step as in "8-bit Inference with TensorRT", slide 38."""
    p = counts[:i].astype(np.float64)
    p[i - 1] += counts[i:].sum()
    q = np.zeros(i)
    for level in range(128):
        start, end = round(level * i / 128), round((level + 1) * i / 128)
        filled = p[start:end] > 0
        if filled.any():
            q[start:end][filled] = counts[start:end].sum() / filled.sum()
    p, q = p / p.sum(), q / q.sum()
    keep = p > 0
    with np.errstate(divide="ignore"):
        return float(np.sum(p[keep] * np.log(p[keep] / q[keep])))


@pytest.mark.parametrize("seed", range(4))
def test_the_entropy_clip_is_that_of_the_published_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, 3_000), rng.normal(0, 8, 20)])
    histogram = _histogram(values)
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1
    divergences = {i: _divergence_by_loops(histogram.counts, i) for i in range(128, used + 1, 7)}
    clip = clip_from_entropy(histogram)
    chosen = _divergence_by_loops(histogram.counts, round(clip / histogram.width))
    if clip == histogram.largest:
        chosen = _divergence_by_loops(histogram.counts, used)
    assert chosen <= min(divergences.values()) + 1e-12


def test_the_entropy_clip_of_few_values_is_the_largest() -> None:
    assert clip_from_entropy(_histogram([0.5])) == 0.5


def test_outliers_are_what_lies_beyond_six_standard_deviations() -> None:
    values = np.random.default_rng(4).standard_t(3, 100_000).astype(np.float32)
    expected = 100.0 * np.mean(
        np.abs(values) > 6 * np.sqrt(np.mean(values.astype(np.float64) ** 2))
    )
    assert 0.1 < expected < 1.0
    assert outlier_percent(_histogram(values)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("values", [[0.0, 0.0], [-3.0, 3.0, 3.0], np.linspace(-1, 1, 1001)])
def test_zeros_equal_magnitudes_and_even_spreads_have_no_outliers(values: object) -> None:
    assert outlier_percent(_histogram(values)) == 0.0
