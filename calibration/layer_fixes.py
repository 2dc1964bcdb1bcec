"""What images teach about the weights and biases of INT8 layers, in one pass of the FP32 graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.bias_correction import bias_shift
from calibration.histogram import LEVELS
from calibration.image_session import ImageSession
from calibration.layer_fix import LayerFix
from calibration.layer_rows import MatrixLayer, Rows, matrix_layers
from calibration.onnx_file import model_from_onnx_file
from calibration.pairs import weight_scales
from calibration.placement import DEFAULT_POLICY, QuantizePolicy, placement_from_graph
from calibration.quantize import clips_from_ranges
from calibration.ranges import Ranges
from calibration.rounding import compensated_levels
from calibration.watch import Image, checked_images, not_finite
from engines.errors import ConfigError

Rounding = Literal["nearest", "compensated"]

ROWS = 512  # positions of a layer's output that are looked at, per image
MAX_INPUTS = 4096  # their moments take 64 MB; no layer of SegFormer-B5 has more

_log = logging.getLogger(__name__)


def layer_fixes_from_images(
    onnx_path: str | Path,
    images: Iterable[Image],
    ranges: Ranges,
    *,
    policy: QuantizePolicy = DEFAULT_POLICY,
    rounding: Rounding = "compensated",
    bias_correction: bool = True,
    on_image: Callable[[int], None] | None = None,
) -> dict[str, LayerFix]:
    """By the output of each layer that `policy` quantizes, its new weight and bias.

    Each is fitted to what its layer reads in the FP32 graph, quantized with the layer's range.
    Pixels agreeing with FP32, SegFormer-B0, 32 calibration images, the default policy: rice
    panicles (mean of two sets) 99.765 % without, 99.767 with shifted biases, 99.789 with
    compensated rounding, 99.790 with both; crop and weed 99.924, 99.938, 99.938 and 99.944.
    ranges: of this graph, with this policy or one that quantizes more.
    rounding: "compensated" as `calibration.rounding` does it; "nearest" leaves the weights alone,
        as do layers with more than `MAX_INPUTS` inputs to an output.
    bias_correction: as `calibration.bias_correction` does it, where a layer has a constant bias or
        a place for one.
    Layers that `matrix_layers` leaves out get no fix. Memory grows with the squares of the layers'
    inputs (70 MB for SegFormer-B0, 1 GB for B5), not with the number of images.
    Raises InputError and DatasetError for images as `ranges_from_images` does, and GraphError for
    an activation that is not finite.
    """
    if rounding not in get_args(Rounding):
        raise ConfigError(
            f"the rounding {rounding!r}",
            expected=f"one of {', '.join(get_args(Rounding))}",
            do="correct the name",
        )
    model = model_from_onnx_file(onnx_path)
    placed = placement_from_graph(model, policy)
    clips = clips_from_ranges(model, placed, ranges)
    layers = [
        _LayerInputs(layer, clips[layer.item.source], moments=rounding == "compensated")
        for layer in matrix_layers(model, placed)
    ]
    _see(model, layers, checked_images(images, model, on_image))
    return {seen.layer.item.output: seen.fix(shift=bias_correction) for seen in layers}


def _see(model: onnx.ModelProto, layers: list[_LayerInputs], images: Iterable[Image]) -> None:
    tensors = tuple(dict.fromkeys(seen.layer.item.activation for seen in layers))
    session, rng = ImageSession(model, tensors), np.random.default_rng(0)
    for index, image in enumerate(images):
        activations = dict(zip(tensors, session.values(image), strict=True))
        for seen in layers:
            rows = seen.layer.rows(activations[seen.layer.item.activation], ROWS, rng)
            if not np.isfinite(rows).all():
                raise not_finite(seen.layer.item.activation, index)
            seen.add(rows)


class _LayerInputs:
    """Sums over the rows that one layer reads, in float and as INT8 reads them."""

    def __init__(self, layer: MatrixLayer, clip: float, *, moments: bool) -> None:
        self.layer = layer
        self._step = np.float32(clip / LEVELS)
        groups, _, inputs = layer.matrix.shape
        if moments and inputs > MAX_INPUTS:
            _log.info("%s: %d inputs, rounded to nearest", layer.item.node, inputs)
            moments = False
        self._count = 0
        self._sum = np.zeros((groups, inputs))
        self._sum_read = np.zeros((groups, inputs))
        self._products = np.zeros((groups, inputs, inputs), np.float32) if moments else None

    def add(self, rows: Rows) -> None:
        # QuantizeLinear uses -128 too; only weights are symmetric.
        read = np.rint(rows / self._step).clip(-LEVELS - 1, LEVELS) * self._step
        self._count += rows.shape[1]
        self._sum += rows.sum(axis=1, dtype=np.float64)
        self._sum_read += read.sum(axis=1, dtype=np.float64)
        if self._products is not None:
            self._products += read.transpose(0, 2, 1) @ read

    def fix(self, *, shift: bool) -> LayerFix:
        assert self.layer.item.axis is not None  # it has a weight
        matrix = self.layer.matrix
        scales = weight_scales(self.layer.weight, self.layer.item.axis)
        by_group = scales.reshape(matrix.shape[:2])
        levels = self._levels(by_group)
        written = levels * by_group[:, :, None].astype(np.float64)
        moved = None
        if shift and self.layer.has_bias:
            means = self._sum / self._count, self._sum_read / self._count
            moved = bias_shift(matrix, written, *means)
        if self._products is None:
            return LayerFix(bias_shift=moved)
        return LayerFix(self.layer.weight_from_matrix(written), scales, moved)

    def _levels(self, scales: NDArray[np.float32]) -> NDArray[np.float64]:
        matrix = self.layer.matrix
        if self._products is not None:
            return compensated_levels(matrix, self._products / self._count, scales)
        nearest = np.rint(matrix / scales[:, :, None]).clip(-LEVELS, LEVELS)
        return np.asarray(nearest, dtype=np.float64)
