"""How much of a graph is INT8, counted alike in every tool's graph and by none of their code.

Shapes come from ONNX's own shape inference on the very graph that is counted, so nothing depends on
names: one tool renames nodes, another turns MatMul and Add into Gemm.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from engines.errors import GraphError

Shape = tuple[int, ...]

# These compute nothing, so a Q/DQ pair commutes with them.
MOVERS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast"})
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
COUNTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
# Operators that compute with their second input too; of the others the first one is the data.
TWO_INPUTS = COUNTED | {"Add", "Sub", "Mul", "Div", "Pow", "LayerNormalization"}
INT8 = frozenset({TensorProto.INT8, TensorProto.UINT8})


@dataclass(frozen=True)
class Int8Count:
    """Multiply-accumulates of one image, and operators in INT8 by type.

    An operator is INT8 when all it computes with, constants included, comes from DequantizeLinear
    of (u)int8, at most moved or cast on the way; a bias does not count. `macs` are those of all
    Conv, ConvTranspose, MatMul and Gemm, `weighted_macs` of those with a constant weight.
    """

    operators: dict[str, int]
    macs: int
    int8_macs: int
    weighted_macs: int
    int8_weighted_macs: int

    @property
    def percent(self) -> float:
        """Share of all multiply-accumulates in INT8."""
        return 100.0 * self.int8_macs / max(self.macs, 1)

    @property
    def weighted_percent(self) -> float:
        """Share of those of Conv and Linear alone."""
        return 100.0 * self.int8_weighted_macs / max(self.weighted_macs, 1)


def int8_count(model: onnx.ModelProto) -> Int8Count:
    """Of a flat graph with fixed shapes; GraphError where a shape cannot be told."""
    graph = _Graph(model)
    operators: Counter[str] = Counter()
    sums = {"macs": 0, "int8_macs": 0, "weighted_macs": 0, "int8_weighted_macs": 0}
    for node in model.graph.node:
        is_int8 = graph.is_int8(node)
        if is_int8:
            operators[node.op_type] += 1
        if node.op_type in COUNTED:
            macs, weighted = graph.macs(node), graph.has_weight(node)
            sums["macs"] += macs
            sums["int8_macs"] += macs * is_int8
            sums["weighted_macs"] += macs * weighted
            sums["int8_weighted_macs"] += macs * (weighted and is_int8)
    return Int8Count(dict(sorted(operators.items())), **sums)


class _Graph:
    """Who writes each tensor, what is constant, and the shape of all."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._writers = {name: node for node in model.graph.node for name in node.output}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self._shapes = shapes_of(model)

    def is_int8(self, node: onnx.NodeProto) -> bool:
        if node.op_type in MOVERS | QUANTIZERS or not node.input:
            return False
        data = node.input[: 2 if node.op_type in TWO_INPUTS else 1]
        if node.op_type == "Concat":
            data = node.input
        return all(self._is_dequantized(name) for name in data)

    def _is_dequantized(self, name: str) -> bool:
        writer = self._writers.get(name)
        while writer is not None and writer.op_type in MOVERS:
            writer = self._writers.get(writer.input[0])
        if writer is None or writer.op_type != "DequantizeLinear":
            return False
        # The type stands in the constant itself, or in the zero point, which is uint8 without one.
        stored = self._constants.get(writer.input[0])
        if stored is None and len(writer.input) > 2:
            stored = self._constants.get(writer.input[2])
        return stored is None or stored.data_type in INT8

    def has_weight(self, node: onnx.NodeProto) -> bool:
        return any(self._is_constant(name) for name in node.input[:2])

    def _is_constant(self, name: str) -> bool:
        while name not in self._constants:
            writer = self._writers.get(name)
            if writer is None or writer.op_type not in MOVERS | QUANTIZERS:
                return False
            name = writer.input[0]
        return True

    def macs(self, node: onnx.NodeProto) -> int:
        left, right, out = (self._shape(n) for n in (*node.input[:2], node.output[0]))
        if node.op_type == "Conv":
            return math.prod(out) * math.prod(right[1:])
        if node.op_type == "ConvTranspose":
            return math.prod(left) * math.prod(right[1:])
        transposed = any(a.name == "transA" and a.i for a in node.attribute)  # Gemm's alone
        return math.prod(out) * left[0 if transposed else -1]

    def _shape(self, name: str) -> Shape:
        shape = self._shapes.get(name)
        if shape is None:
            raise GraphError(
                f"no fixed shape of the tensor {name}",
                expected="a graph whose shapes ONNX's shape inference can tell",
                do="export with fixed sizes and a batch of 1",
            )
        return shape


def shapes_of(model: onnx.ModelProto) -> dict[str, Shape]:
    """Of every tensor whose sides are all fixed; GraphError for a graph that is not valid."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    # What a tool left there may be of another type or stale, which inference would refuse.
    del bare.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(
            f"a graph that ONNX's shape inference refuses ({error})",
            expected="operators and types of the ONNX standard",
            do="look at what wrote it",
        ) from error
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        sides = value.type.tensor_type.shape.dim
        if all(side.HasField("dim_value") for side in sides):
            shapes[value.name] = tuple(side.dim_value for side in sides)
    return shapes
