"""What values the layers of each group have to hold in INT8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.groups import LayerGroup, nodes_by_group
from calibration.histogram import OUTLIER_DEVIATIONS
from calibration.placement import QuantizedNode, QuantizePolicy, placement_from_graph
from calibration.ranges import Ranges, TensorRange
from calibration.wiring import wiring_of


@dataclass(frozen=True)
class GroupRange:
    """The extremes over all layers of a group.

    weight_max: largest magnitude of a weight, None without weights. activation_low and _high: what
    the quantized activations reached, clip: the largest magnitude that a chosen range holds.
    outlier_percent, weight_outlier_percent: share of the values beyond 6 standard deviations
    from 0, of the tensor with the most of them; None where they were not counted.
    """

    weight_max: float | None
    weight_outlier_percent: float | None
    activation_low: float
    activation_high: float
    clip: float
    outlier_percent: float | None


def group_ranges(
    model: onnx.ModelProto,
    ranges: Ranges,
    groups: Sequence[LayerGroup],
    *,
    policy: QuantizePolicy,
) -> dict[str, GroupRange]:
    """Group's name -> its ranges; a group without a layer that `policy` quantizes is left out.

    policy: the one that `ranges` were taken from `model` with.
    """
    placed = {item.output: item for item in placement_from_graph(model, policy)}
    constants = wiring_of(model.graph).constants
    found = {}
    for name, items in nodes_by_group(model, groups).items():
        layers = [placed[item.output] for item in items if item.output in placed]
        if layers:
            found[name] = _group_range(layers, ranges, constants)
    return found


def _group_range(
    layers: Sequence[QuantizedNode], ranges: Ranges, constants: Mapping[str, onnx.TensorProto]
) -> GroupRange:
    sources = dict.fromkeys(read.source for item in layers for read in item.inputs)
    activations = [ranges.tensors[source] for source in sources]
    names = dict.fromkeys(item.weight for item in layers if item.weight is not None)
    weights = [numpy_helper.to_array(constants[name]) for name in names]
    return GroupRange(
        weight_max=max((float(np.abs(weight).max()) for weight in weights), default=None),
        weight_outlier_percent=max(map(_outlier_percent, weights), default=None),
        activation_low=min(item.min for item in activations),
        activation_high=max(item.max for item in activations),
        clip=max(item.amax for item in activations),
        outlier_percent=_most(activations),
    )


def _outlier_percent(values: NDArray[np.float32]) -> float:
    """Percent of the values that lie beyond 6 standard deviations from 0."""
    limit = OUTLIER_DEVIATIONS * float(np.sqrt(np.square(values, dtype=np.float64).mean()))
    return 100.0 * int(np.count_nonzero(np.abs(values) > limit)) / values.size


def _most(activations: Sequence[TensorRange]) -> float | None:
    counted = [item.outlier_percent for item in activations]
    return max((percent for percent in counted if percent is not None), default=None)
