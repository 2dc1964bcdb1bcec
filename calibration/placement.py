"""Which nodes of a graph run in INT8, and which tensors each of them reads quantized.

Quantized: Conv, and MatMul or Gemm with a constant weight. Left alone unless the policy says
otherwise, because a Q/DQ pair there costs accuracy or speed on transformers: residual additions
(they alone took a ViT-B from 85 % to 5 % top-1 on TensorRT 10.3), products of two activations, the
first layers, the classifier and depthwise convolutions. Never quantized: Softmax,
LayerNormalization, GELU, Resize.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import get_args

import onnx

from calibration.layers import Kind, QuantizableNode, quantizable_nodes, weight_axis
from calibration.onnx_file import node_label
from calibration.wiring import MOVERS, Wiring, wiring_of
from engines.errors import ConfigError, GraphError

FLOATING: frozenset[Kind] = frozenset({"product", "residual"})


@dataclass(frozen=True)
class QuantizePolicy:
    """What stays in floating point, and how weights are stored.

    exclude_kinds: see `QuantizableNode.kinds`.
    exclude_nodes: node names, or globs over them; each must match a layer that INT8 can take.
    fold_weights: store int8 weights instead of float32 weights with a Q/DQ pair.
    """

    exclude_kinds: frozenset[Kind] = FLOATING | {"first", "classifier", "depthwise"}
    exclude_nodes: tuple[str, ...] = ()
    fold_weights: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.exclude_kinds) - set(get_args(Kind))
        if unknown:
            raise ConfigError(
                f"the kind {sorted(unknown)[0]!r}",
                expected=f"one of {', '.join(get_args(Kind))}",
                do="correct the name",
            )


DEFAULT_POLICY = QuantizePolicy()
EVERY_LAYER = QuantizePolicy(exclude_kinds=FLOATING)  # every Conv and Linear


@dataclass(frozen=True)
class QuantizedInput:
    """One input that is read quantized.

    activation: the tensor that the node reads; source: the one that is quantized, which is
    `activation` or lies before the Transposes and Reshapes that lead to it.
    """

    index: int
    activation: str
    source: str


@dataclass(frozen=True)
class QuantizedNode:
    """A node that runs in INT8.

    inputs: its activations: one beside a weight, two of a product or an addition.
    weight, axis: its constant weight and the axis of the output channels there; None for neither.
    """

    node: str
    op_type: str
    output: str
    inputs: tuple[QuantizedInput, ...]
    weight: str | None
    axis: int | None

    @property
    def activation(self) -> str:
        """Of a weighted node, what it reads beside its weight."""
        return self.inputs[0].activation

    @property
    def source(self) -> str:
        """The tensor that is quantized for `activation`."""
        return self.inputs[0].source


def placement_from_graph(
    model: onnx.ModelProto, policy: QuantizePolicy
) -> tuple[QuantizedNode, ...]:
    """The nodes that run in INT8, in graph order; at least one, else GraphError.

    The graph is flat and simplified: a weight is an initializer or a Constant.
    """
    _check_float_graph(model)
    wiring = wiring_of(model.graph)
    found = quantizable_nodes(model)
    excluded = _excluded(policy, found)
    # Output of each node -> its inputs that are read quantized, and the axis of its weight.
    quantized: dict[str, tuple[tuple[int, ...], int | None]] = {}
    for item in found:
        if item.node in excluded or item.kinds & policy.exclude_kinds:
            continue
        axis = _weight_axis(wiring.producers[item.output], wiring)
        if item.kinds & FLOATING:
            quantized[item.output] = (0, 1), None
        elif axis is not None:
            quantized[item.output] = (0,), axis
    if not quantized:
        raise GraphError(
            f"a graph with {len(found)} layers that INT8 could take, none of which is to run in it",
            expected="at least one Conv, MatMul or Gemm with a constant float32 weight",
            do="simplify the graph, or exclude less",
        )
    indices = {output: places for output, (places, _) in quantized.items()}
    only_quantized = _tensors_read_by_quantized_only(model.graph, wiring, indices)
    placed = []
    for output, (places, axis) in quantized.items():
        node = wiring.producers[output]
        inputs = tuple(
            QuantizedInput(i, node.input[i], _source(node.input[i], wiring, only_quantized))
            for i in places
        )
        weight = None if axis is None else node.input[1]
        placed.append(QuantizedNode(node_label(node), node.op_type, output, inputs, weight, axis))
    return tuple(placed)


def _source(tensor: str, wiring: Wiring, only_quantized: frozenset[str]) -> str:
    while (
        tensor in only_quantized
        and tensor in wiring.producers
        and wiring.producers[tensor].op_type in MOVERS
    ):
        tensor = wiring.producers[tensor].input[0]
    return tensor


def _check_float_graph(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"):
            raise GraphError(
                f"a graph that is quantized already ({node.op_type} {node_label(node)})",
                expected="the FP32 graph",
                do="give the ONNX file that the exporter wrote",
            )


def _excluded(policy: QuantizePolicy, found: tuple[QuantizableNode, ...]) -> frozenset[str]:
    """Names of the nodes that `exclude_nodes` names."""
    names = {item.node for item in found}
    excluded = names.intersection(policy.exclude_nodes)
    for glob in policy.exclude_nodes:
        if glob in names:
            continue
        matching = [name for name in names if fnmatchcase(name, glob)]
        if not matching:
            examples = ", ".join(item.node for item in found[:3])
            raise GraphError(
                f"the pattern {glob!r}, which matches no layer of this graph",
                expected=f"a pattern over layer names such as {examples}",
                do="correct the pattern",
            )
        excluded.update(matching)
    return frozenset(excluded)


def _weight_axis(node: onnx.NodeProto, wiring: Wiring) -> int | None:
    """Axis of the weight's output channels; None where there is none or it cannot be quantized."""
    weight = wiring.constants.get(node.input[1])
    if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
        return None
    return weight_axis(node, len(weight.dims))


def _tensors_read_by_quantized_only(
    graph: onnx.GraphProto, wiring: Wiring, indices: Mapping[str, tuple[int, ...]]
) -> frozenset[str]:
    """Tensors whose every reader is quantized, or moves them to quantized readers only."""
    found: set[str] = set()
    for node in reversed(graph.node):
        for name in node.output:
            readers = wiring.consumers.get(name, [])
            if (
                name not in wiring.outputs
                and readers
                and all(_reads_quantized(r, name, indices, found) for r in readers)
            ):
                found.add(name)
    return frozenset(found)


def _reads_quantized(
    reader: onnx.NodeProto, name: str, indices: Mapping[str, tuple[int, ...]], found: set[str]
) -> bool:
    places = [index for index, read in enumerate(reader.input) if read == name]
    if reader.output[0] in indices:
        return set(places) <= set(indices[reader.output[0]])
    return places == [0] and reader.op_type in MOVERS and reader.output[0] in found


def redirected_movers(
    model: onnx.ModelProto, placed: tuple[QuantizedNode, ...]
) -> frozenset[tuple[str, str]]:
    """(mover's output, source) of every Transpose or Reshape that must read a quantized source."""
    wiring = wiring_of(model.graph)
    redirected = set()
    for item in (read for node in placed for read in node.inputs):
        tensor = item.activation
        while tensor != item.source:
            mover = wiring.producers[tensor]
            tensor = mover.input[0]
            if tensor == item.source:
                redirected.add((mover.output[0], tensor))
    return frozenset(redirected)
