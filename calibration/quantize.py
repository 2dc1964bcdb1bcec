"""INT8 written into the graph as QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from calibration.layer_fix import LayerFix
from calibration.layers import weighted_nodes
from calibration.macs import macs_from_model
from calibration.onnx_file import model_from_onnx_file, opset_of, write_checked_onnx
from calibration.pairs import PairWriter
from calibration.placement import (
    DEFAULT_POLICY,
    QuantizedNode,
    QuantizePolicy,
    placement_from_graph,
)
from calibration.ranges import Ranges
from calibration.structure import check_pairs
from calibration.wiring import moved_from, wiring_of
from engines.errors import GraphError


@dataclass(frozen=True)
class QuantizeRecord:
    """nodes: names of the layers in INT8; float_nodes: weighted layers that are not.

    counts: INT8 layers by operator. activations, weights: how many tensors of the float graph are
    quantized.
    int8_macs_percent: share of all multiply-accumulates, products of two activations included;
    int8_weighted_percent: share of those of Conv and Linear alone.
    """

    nodes: tuple[str, ...]
    float_nodes: tuple[str, ...]
    counts: Mapping[str, int]
    activations: int
    weights: int
    int8_macs_percent: float
    int8_weighted_percent: float


def int8_onnx_from_ranges(
    onnx_path: str | Path,
    ranges: Ranges,
    out_path: str | Path,
    *,
    policy: QuantizePolicy = DEFAULT_POLICY,
    fixes: Mapping[str, LayerFix] | None = None,
) -> QuantizeRecord:
    """Write `onnx_path` with Q/DQ pairs to `out_path`; inputs and outputs stay as they are.

    The ranges must have been taken from this graph, with this policy or one that quantizes more.
    fixes: by a layer's output, what replaces its weights and is added to its bias; those of layers
    that stay in floating point are not used.
    Raises GraphError for a graph that cannot be quantized (opset below 13, no range for a tensor),
    and leaves no file then.
    """
    original = model_from_onnx_file(onnx_path)
    model, placed = int8_model_from_ranges(original, ranges, policy=policy, fixes=fixes)
    residuals = "residual" not in policy.exclude_kinds
    write_checked_onnx(
        model,
        out_path,
        like=original,
        check=lambda written: check_pairs(written, residuals=residuals),
    )
    return _record(original, placed)


def int8_model_from_ranges(
    original: onnx.ModelProto,
    ranges: Ranges,
    *,
    policy: QuantizePolicy,
    fixes: Mapping[str, LayerFix] | None = None,
) -> tuple[onnx.ModelProto, tuple[QuantizedNode, ...]]:
    """`int8_onnx_from_ranges` in memory, unchecked: a quantized copy, and what runs in INT8."""
    if opset_of(original) < 13:
        raise GraphError(
            f"opset {opset_of(original)}",
            expected="13 or newer, the first with scales per channel",
            do="export again with opset 17",
        )
    placed = placement_from_graph(original, policy)
    clips = clips_from_ranges(original, placed, ranges)
    model = onnx.ModelProto()
    model.CopyFrom(original)
    PairWriter(model, clips, fixes or {}, fold_weights=policy.fold_weights).insert(placed)
    return model, placed


def clips_from_ranges(
    model: onnx.ModelProto, placed: Collection[QuantizedNode], ranges: Ranges
) -> dict[str, float]:
    """Clip of every quantized tensor.

    A larger policy may have quantized the tensor that a Transpose or Reshape moved to this one,
    which then holds the same values.
    """
    wiring = wiring_of(model.graph)
    clips = {}
    missing = []
    for source in dict.fromkeys(read.source for item in placed for read in item.inputs):
        tensor = moved_from(source, ranges.tensors, wiring)
        if tensor is None:
            missing.append(source)
        else:
            clips[source] = ranges.tensors[tensor].amax
    if missing:
        raise GraphError(
            f"ranges without {len(missing)} tensors of this graph, such as {missing[0]}",
            expected="ranges taken from this graph, with a policy that quantizes as much",
            do="calibrate again",
        )
    return clips


def _record(model: onnx.ModelProto, placed: Collection[QuantizedNode]) -> QuantizeRecord:
    quantized = {item.output for item in placed}
    weighted = weighted_nodes(model)
    macs = macs_from_model(model)

    def share(of: Collection[str]) -> float:
        return (
            100.0
            * sum(macs.get(o, 0) for o in quantized.intersection(of))
            / max(sum(macs[o] for o in of), 1)
        )

    return QuantizeRecord(
        nodes=tuple(item.node for item in placed),
        float_nodes=tuple(w.node for w in weighted if w.output not in quantized),
        counts=dict(Counter(item.op_type for item in placed)),
        activations=len({read.source for item in placed for read in item.inputs}),
        weights=len({(item.weight, item.axis) for item in placed if item.weight is not None}),
        int8_macs_percent=share(macs),
        int8_weighted_percent=share([w.output for w in weighted]),
    )
