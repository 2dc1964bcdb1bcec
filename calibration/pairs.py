"""Writes Q/DQ pairs into a graph, one per tensor, and points the readers at them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.graph_edit import FreeNames, drop_unread_initializers
from calibration.histogram import LEVELS, SILENT_CLIP
from calibration.layer_fix import LayerFix
from calibration.placement import QuantizedNode, redirected_movers
from calibration.wiring import bias_addition, wiring_of
from engines.errors import GraphError


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


class PairWriter:
    """Changes `model` in place.

    clips: largest magnitude kept of each quantized tensor. fixes: new weights and biases of
    layers, by their output.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        clips: Mapping[str, float],
        fixes: Mapping[str, LayerFix],
        *,
        fold_weights: bool = False,
    ) -> None:
        self._model, self._clips, self._fixes = model, clips, fixes
        self._fold_weights = fold_weights
        self._wiring = wiring_of(model.graph)
        self._after: dict[str, list[onnx.NodeProto]] = {}  # tensor -> nodes to put behind it
        self._free = FreeNames(model.graph)

    def insert(self, placed: tuple[QuantizedNode, ...]) -> None:
        movers = redirected_movers(self._model, placed)
        sources = dict.fromkeys(read.source for item in placed for read in item.inputs)
        activations = {source: self._activation(source) for source in sources}
        weights: dict[tuple[str, int], str] = {}
        for output, source in movers:
            self._wiring.producers[output].input[0] = activations[source]
        for item in placed:
            node = self._wiring.producers[item.output]
            for read in item.inputs:
                if read.activation == read.source:
                    node.input[read.index] = activations[read.source]
            if item.weight is None or item.axis is None:
                continue
            fix = self._fixes.get(item.output)
            if fix is not None and fix.weight is not None:
                node.input[1] = self._fixed_weight(item.weight, fix, item.axis)
            else:
                key = item.weight, item.axis
                if key not in weights:
                    weights[key] = self._weight(*key)
                node.input[1] = weights[key]
            if fix is not None and fix.bias_shift is not None:
                self._shift_bias(node, fix.bias_shift)
        self._rebuild()

    def _activation(self, source: str) -> str:
        scale = np.array(self._clips[source] / LEVELS, dtype=np.float32)
        return self._pair(source, scale, axis=None)

    def _weight(self, name: str, axis: int) -> str:
        weight = numpy_helper.to_array(self._wiring.constants[name])
        return self._weight_pair(name, weight, weight_scales(weight, axis), axis)

    def _fixed_weight(self, name: str, fix: LayerFix, axis: int) -> str:
        """A layer's own copy, for a fix depends on what the layer reads."""
        assert fix.weight is not None
        assert fix.scales is not None  # a fix has both or neither
        stored = self._initializer(f"{name}_rounded", fix.weight.astype(np.float32))
        return self._weight_pair(stored, fix.weight, fix.scales, axis)

    def _weight_pair(
        self, name: str, weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int
    ) -> str:
        if not self._fold_weights:
            # The weight stays float32 with both nodes behind it: TensorRT 8.x's parser takes no
            # int8 initializer, and every builder folds the pair into int8 weights itself.
            return self._pair(name, scales, axis=axis)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        # A fixed weight may use -128, which nothing else reaches.
        rounded = np.rint(weight / scales.reshape(shape)).clip(-128, LEVELS).astype(np.int8)
        stored = self._initializer(f"{name}_int8", rounded)
        parameters = self._parameters(name, scales)
        return self._node("DequantizeLinear", stored, parameters, name, axis)

    def _shift_bias(self, node: onnx.NodeProto, shift: NDArray[np.float32]) -> None:
        """Added to the third input of a Conv or Gemm, or to the constant that follows a MatMul."""
        if node.op_type == "MatMul":
            add = self._bias_addition(node.output[0])
            index = next(i for i, name in enumerate(add.input) if name in self._wiring.constants)
            bias = numpy_helper.to_array(self._wiring.constants[add.input[index]])
            add.input[index] = self._initializer(f"{add.input[index]}_shifted", bias + shift)
        elif len(node.input) > 2 and node.input[2]:
            bias = numpy_helper.to_array(self._wiring.constants[node.input[2]])
            node.input[2] = self._initializer(f"{node.input[2]}_shifted", bias + shift)
        else:
            del node.input[2:]
            node.input.append(self._initializer(f"{node.output[0]}_bias", shift))

    def _bias_addition(self, output: str) -> onnx.NodeProto:
        add = bias_addition(output, self._wiring)
        if add is None:
            raise GraphError(
                f"a shift of the bias of {output}, which has none",
                expected="a MatMul read by the addition of a constant alone",
                do="make no such fix for this layer",
            )
        return add

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
        drop_unread_initializers(graph)
