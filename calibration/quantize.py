"""INT8 written into the graph as QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.macs import macs_from_model
from calibration.onnx_file import model_from_onnx_file, opset_of, write_checked_onnx
from calibration.placement import (
    DEFAULT_POLICY,
    QuantizedNode,
    QuantizePolicy,
    placement_from_graph,
    redirected_movers,
    weighted_nodes,
    wiring_of,
)
from calibration.ranges import SILENT_CLIP, Ranges
from engines.errors import GraphError

LEVELS = 127  # symmetric: -128 is not used


@dataclass(frozen=True)
class QuantizeRecord:
    """nodes: names of the layers in INT8; float_nodes: weighted layers that are not.

    counts: INT8 layers by operator. activations, weights: how many Q/DQ pairs were written.
    int8_macs_percent: share of all multiply-accumulates, products of two activations included.
    """

    nodes: tuple[str, ...]
    float_nodes: tuple[str, ...]
    counts: Mapping[str, int]
    activations: int
    weights: int
    int8_macs_percent: float


def int8_onnx_from_ranges(
    onnx_path: str | Path,
    ranges: Ranges,
    out_path: str | Path,
    *,
    policy: QuantizePolicy = DEFAULT_POLICY,
) -> QuantizeRecord:
    """Write `onnx_path` with Q/DQ pairs to `out_path`; inputs and outputs stay as they are.

    The policy must be the one that the ranges were taken with. Raises GraphError for a graph that
    cannot be quantized (opset below 13, no range for a tensor), and leaves no file then.
    """
    original = model_from_onnx_file(onnx_path)
    if opset_of(original) < 13:
        raise GraphError(
            f"opset {opset_of(original)} in {onnx_path}",
            expected="13 or newer, the first with scales per channel",
            do="export again with opset 17",
        )
    placed = placement_from_graph(original, policy)
    _check_ranges(placed, ranges)
    model = onnx.ModelProto()
    model.CopyFrom(original)
    pairs = _Pairs(model, ranges, policy)
    pairs.insert(placed)
    write_checked_onnx(model, out_path, like=original, check=check_pairs)
    quantized = {item.output for item in placed}
    macs = macs_from_model(original)
    return QuantizeRecord(
        nodes=tuple(item.node for item in placed),
        float_nodes=tuple(w.node for w in weighted_nodes(original) if w.output not in quantized),
        counts=dict(Counter(item.op_type for item in placed)),
        activations=len({item.source for item in placed}),
        weights=len({(item.weight, item.axis) for item in placed}),
        int8_macs_percent=100.0 * sum(macs[o] for o in quantized) / max(sum(macs.values()), 1),
    )


def _check_ranges(placed: Iterable[QuantizedNode], ranges: Ranges) -> None:
    missing = sorted({item.source for item in placed} - set(ranges.tensors))
    if missing:
        raise GraphError(
            f"ranges without {len(missing)} tensors of this graph, such as {missing[0]}",
            expected="ranges taken from this graph, with this policy",
            do="calibrate again",
        )


def weight_scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """(channels,) float32: largest magnitude of each channel / 127, always positive.

    A channel of zeros is exact at any scale; it takes the tensor's largest, so that no scale is so
    small that a conversion to FP16 turns it into 0.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float32)
    if not np.isfinite(largest).all():
        raise GraphError(
            "a weight that is not finite", expected="finite weights", do="check the checkpoint"
        )
    scales = largest / np.float32(LEVELS)
    safe = scales.max() if scales.max() > 0 else np.float32(SILENT_CLIP / LEVELS)
    return np.where(scales > 0, scales, safe).astype(np.float32)


class _Pairs:
    """Writes Q/DQ pairs into a graph, one per tensor, and points the readers at them."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges, policy: QuantizePolicy) -> None:
        self._model, self._ranges, self._policy = model, ranges, policy
        self._wiring = wiring_of(model.graph)
        self._after: dict[str, list[onnx.NodeProto]] = {}  # tensor -> nodes to put behind it
        self._taken = {n for node in model.graph.node for n in (*node.input, *node.output)}

    def insert(self, placed: tuple[QuantizedNode, ...]) -> None:
        movers = redirected_movers(self._model, placed)
        activations = {s: self._activation(s) for s in dict.fromkeys(p.source for p in placed)}
        weights = {
            key: self._weight(*key) for key in dict.fromkeys((p.weight, p.axis) for p in placed)
        }
        for output, source in movers:
            self._wiring.producers[output].input[0] = activations[source]
        for item in placed:
            node = self._wiring.producers[item.output]
            node.input[1] = weights[item.weight, item.axis]
            if item.activation == item.source:
                node.input[0] = activations[item.source]
        self._rebuild()

    def _activation(self, source: str) -> str:
        scale = np.array(self._ranges.tensors[source].amax / LEVELS, dtype=np.float32)
        return self._pair(source, scale, axis=None)

    def _weight(self, name: str, axis: int) -> str:
        tensor = self._wiring.constants[name]
        weight = numpy_helper.to_array(tensor)
        scales = weight_scales(weight, axis)
        if not self._policy.fold_weights:
            # The weight stays float32 with both nodes behind it: TensorRT 8.x's parser takes no
            # int8 initializer, and every builder folds the pair into int8 weights itself.
            return self._pair(name, scales, axis=axis)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        rounded = np.rint(weight / scales.reshape(shape)).clip(-LEVELS, LEVELS).astype(np.int8)
        stored = self._initializer(f"{name}_int8", rounded)
        parameters = self._parameters(name, scales)
        return self._node("DequantizeLinear", stored, parameters, name, axis)

    def _pair(self, name: str, scale: NDArray[np.float32], *, axis: int | None) -> str:
        parameters = self._parameters(name, scale)
        quantized = self._node("QuantizeLinear", name, parameters, name, axis)
        return self._node("DequantizeLinear", quantized, parameters, name, axis)

    def _parameters(self, name: str, scale: NDArray[np.float32]) -> tuple[str, str]:
        zero_point = np.zeros(scale.shape, dtype=np.int8)
        return (
            self._initializer(f"{name}_scale", scale),
            self._initializer(f"{name}_zero_point", zero_point),
        )

    def _initializer(self, name: str, values: NDArray[np.generic]) -> str:
        name = self._free(name)
        self._model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _node(
        self, op: str, tensor: str, parameters: tuple[str, str], behind: str, axis: int | None
    ) -> str:
        output = self._free(f"{behind}_{op}")
        node = helper.make_node(op, [tensor, *parameters], [output], name=output)
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self._after.setdefault(behind, []).append(node)
        return output

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _rebuild(self) -> None:
        """Nodes in topological order again, without the initializers that nothing reads."""
        graph = self._model.graph
        nodes: list[onnx.NodeProto] = []
        produced = {output for node in graph.node for output in node.output}
        for tensor, behind in self._after.items():
            if tensor not in produced:  # an initializer, or the graph's input
                nodes.extend(behind)
        for node in graph.node:
            nodes.append(node)
            for output in node.output:
                nodes.extend(self._after.get(output, []))
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        read = {name for node in copies for name in node.input}
        read.update(value.name for value in graph.output)
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def check_pairs(model: onnx.ModelProto) -> None:
    """GraphError unless every QuantizeLinear is read by a DequantizeLinear of the same scale."""
    wiring = wiring_of(model.graph)
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        readers = wiring.consumers.get(node.output[0], [])
        if not readers or any(
            r.op_type != "DequantizeLinear" or r.input[1:] != node.input[1:] for r in readers
        ):
            raise GraphError(
                f"{node.name} without a DequantizeLinear of the same scale",
                expected="Q/DQ pairs",
                do="report this as a bug, with the ONNX file",
            )
