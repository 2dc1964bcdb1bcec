"""A histogram of magnitudes that grows with what it sees, and three ways to choose a clip from it.

Bins start at 0 and are equally wide. When a value beyond the last bin arrives, the width doubles
and pairs of bins merge; widths are powers of two, so nothing is lost or rounded in a merge. One
pass over the images is enough, and the memory does not depend on how many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (BINS,), values per bin

BINS = 4096  # a power of two; between half and all of them lie below the largest value
LEVELS = 127  # int8 magnitudes of a symmetric range, -127..127
# For a tensor that was zero on every image: any positive clip is exact. This one's step,
# clip / 127, is the smallest normal float16, so it survives a conversion to FP16.
SILENT_CLIP = LEVELS * 2.0**-14
_LOG2_BINS = 12
_SMALLEST_EXPONENT = -100  # below 2^-100 the reciprocal of a width would overflow float32
_BLOCK = 1 << 16  # values at a time: the temporaries stay in the L2 cache, 1.5x as fast
_MSE_CANDIDATES = 256
_KL_LEVELS = 128
OUTLIER_DEVIATIONS = 6.0


@dataclass
class MagnitudeHistogram:
    """Counts of |x| of every value added so far, with the exact extremes."""

    low: float = math.inf
    high: float = -math.inf
    counts: Counts = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    exponent: int = _SMALLEST_EXPONENT  # the bins cover 0 .. 2**exponent

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent - _LOG2_BINS)

    @property
    def largest(self) -> float:
        """Largest magnitude added."""
        return max(abs(self.low), abs(self.high))

    def add(self, values: NDArray[np.float32], low: float, high: float) -> None:
        """Count `values`, finite, whose extremes are `low` and `high`. `values` is not changed."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.largest > 0:
            self._grow(math.frexp(self.largest)[1])
        flat = values.reshape(-1)
        scale = np.float32(1.0 / self.width)  # exact: a power of two
        scaled = np.empty(min(_BLOCK, flat.size), dtype=np.float32)
        bins = np.empty(scaled.size, dtype=np.int32)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            np.multiply(block, scale, out=scaled[: block.size])
            np.abs(scaled[: block.size], out=scaled[: block.size])
            np.copyto(bins[: block.size], scaled[: block.size], casting="unsafe")
            self.counts += np.bincount(bins[: block.size], minlength=BINS)

    def _grow(self, exponent: int) -> None:
        doublings = exponent - self.exponent
        if doublings <= 0:
            return
        merged = np.zeros_like(self.counts)
        if doublings >= _LOG2_BINS:
            merged[0] = self.counts.sum()
        else:
            pairs = self.counts.reshape(-1, 1 << doublings).sum(axis=1)
            merged[: pairs.size] = pairs
        self.counts, self.exponent = merged, exponent


def clip_from_percentile(histogram: MagnitudeHistogram, percentile: float) -> float:
    """Magnitude below which `percentile` percent of all values lie, linear within a bin."""
    cumulative = np.cumsum(histogram.counts)
    wanted = percentile / 100.0 * float(cumulative[-1])
    index = int(np.searchsorted(cumulative, wanted))
    below = float(cumulative[index - 1]) if index else 0.0
    inside = (wanted - below) / float(max(histogram.counts[index], 1))
    return min((index + inside) * histogram.width, histogram.largest)


def clip_from_mse(histogram: MagnitudeHistogram) -> float:
    """Clip with the smallest mean squared error of rounding to int8, values at bin centres."""
    used = _used_bins(histogram)
    # One unit is a bin; the candidates are bin edges.
    candidates = np.unique(np.linspace(1, used, _MSE_CANDIDATES).astype(np.int64))
    filled = np.flatnonzero(histogram.counts[:used])
    centres = filled + 0.5
    errors = np.empty(candidates.size)
    for i, clip in enumerate(candidates):
        step = clip / LEVELS
        rounded = np.minimum(np.rint(centres / step), LEVELS) * step
        errors[i] = np.dot((centres - rounded) ** 2, histogram.counts[filled])
    return min(float(candidates[errors.argmin()]) * histogram.width, histogram.largest)


def clip_from_entropy(histogram: MagnitudeHistogram) -> float:
    """Clip with the smallest Kullback-Leibler divergence, as TensorRT's calibrator defines it.

    For every i from 128 bins on: P is the first i bins with what lies beyond added to bin i-1; Q is
    the first i bins merged to 128 levels and spread evenly over the bins that are filled in P
    (Migacz, "8-bit Inference with TensorRT", GTC 2017). Sums per level come from running totals,
    so all i are searched at once.
    """
    used = _used_bins(histogram)
    if used <= _KL_LEVELS:
        return histogram.largest
    counts = histogram.counts[:used].astype(np.float64)
    ends = np.arange(_KL_LEVELS, used + 1)
    total = counts.sum()
    inside = np.cumsum(counts)[ends - 1]
    outside = total - inside
    last = counts[ends - 1]
    filled_last = (last == 0) & (outside > 0)  # bin i-1 is filled in P by the outliers alone

    edges = np.rint(ends[:, None] * np.arange(_KL_LEVELS + 1) / _KL_LEVELS).astype(np.int64)
    level_sum = np.diff(_running(counts)[edges], axis=1)
    level_bins = np.diff(_running((counts > 0).astype(np.float64))[edges], axis=1)
    level_bins[:, -1] += filled_last
    p_level = level_sum.copy()
    p_level[:, -1] += outside

    p_log_p = _running(_x_log_x(counts))[ends] - _x_log_x(last) + _x_log_x(last + outside)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(level_sum / level_bins)  # -inf where P has values and Q has none
        p_log_q = np.where(p_level > 0, p_level * log_q, 0.0).sum(axis=1)
        divergence = (p_log_p - p_log_q) / total + np.log(inside / total)
    best = int(ends[np.nanargmin(divergence)])
    return min(best * histogram.width, histogram.largest)


def outlier_percent(histogram: MagnitudeHistogram) -> float:
    """Share of the values beyond 6 standard deviations from 0, values at bin centres.

    From 0 and not from the mean, for 0 is the middle of the int8 grid: what lies that far out
    takes most of the grid's levels away from the rest.
    """
    counts = histogram.counts.astype(np.float64)
    centres = np.arange(BINS) + 0.5
    limit = OUTLIER_DEVIATIONS * math.sqrt(np.dot(counts, centres**2) / counts.sum())
    return float(100.0 * counts[centres > limit].sum() / counts.sum())


def _used_bins(histogram: MagnitudeHistogram) -> int:
    filled = np.flatnonzero(histogram.counts)
    return int(filled[-1]) + 1 if filled.size else 1


def _running(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Totals before each bin: [0, v0, v0+v1, ...]."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.log(np.where(values > 0, values, 1.0))
