"""Which nodes of a graph run in INT8, and which tensor each of them reads quantized.

Quantized: Conv, and MatMul or Gemm with a constant weight. Left alone, because a Q/DQ pair there
costs accuracy or speed on transformers: residual additions (they alone took a ViT-B from 85 % to
5 % top-1 on TensorRT 10.3), products of two activations, Softmax, LayerNormalization, GELU, Resize;
and, unless the policy says otherwise, the first layers, the classifier and depthwise convolutions.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, cast, get_args

import onnx

from calibration.onnx_file import data_inputs, node_label
from engines.errors import ConfigError, GraphError

Kind = Literal["first", "classifier", "depthwise", "conv", "linear"]

# A pair of Q/DQ commutes with these, so it may stand before them.
MOVERS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


@dataclass(frozen=True)
class QuantizePolicy:
    """What stays in floating point, and how weights are stored.

    exclude_kinds: "first" (no weighted layer between it and the image), "classifier" (none between
        it and the output), "depthwise", "conv", "linear".
    exclude_nodes: globs over node names, each of which must match a weighted node.
    fold_weights: store int8 weights instead of float32 weights with a Q/DQ pair.
    """

    exclude_kinds: frozenset[Kind] = frozenset({"first", "classifier", "depthwise"})
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


@dataclass(frozen=True)
class WeightedNode:
    """A node with a constant weight; `output` identifies it, for node names need not be unique."""

    node: str
    op_type: str
    output: str
    kinds: frozenset[Kind]


@dataclass(frozen=True)
class QuantizedNode:
    """A node that runs in INT8.

    activation: the tensor it reads; source: the tensor that is quantized, which is `activation`
    or lies before the Transposes and Reshapes that lead to it. axis: the weight's output channels.
    """

    node: str
    op_type: str
    output: str
    activation: str
    source: str
    weight: str
    axis: int


@dataclass(frozen=True)
class Wiring:
    """Who writes and who reads each tensor of a flat graph."""

    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    consumers: dict[str, list[onnx.NodeProto]] = field(default_factory=lambda: defaultdict(list))
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()


def wiring_of(graph: onnx.GraphProto) -> Wiring:
    wiring = Wiring(outputs=frozenset(value.name for value in graph.output))
    wiring.constants.update((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        for name in node.input:
            wiring.consumers[name].append(node)
        for name in node.output:
            wiring.producers[name] = node
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            wiring.constants[node.output[0]] = node.attribute[0].t
    return wiring


def weighted_nodes(model: onnx.ModelProto) -> tuple[WeightedNode, ...]:
    """Every Conv, ConvTranspose, MatMul and Gemm with a constant weight on the image's path."""
    wiring = wiring_of(model.graph)
    from_image = {value.name for value in data_inputs(model)}
    after_weighted: set[str] = set()
    found: list[tuple[onnx.NodeProto, bool]] = []
    for node in model.graph.node:
        if from_image.isdisjoint(node.input):
            continue
        from_image.update(node.output)
        weighted = _is_weighted(node, wiring)
        later = not after_weighted.isdisjoint(node.input)
        if weighted:
            found.append((node, not later))
        if weighted or later:
            after_weighted.update(node.output)
    before_weighted: set[str] = set()
    for node in reversed(model.graph.node):
        if _is_weighted(node, wiring) or not before_weighted.isdisjoint(node.output):
            before_weighted.update(node.input)
    return tuple(
        WeightedNode(
            node_label(node),
            node.op_type,
            node.output[0],
            _kinds(node, wiring, first, node.output[0] not in before_weighted),
        )
        for node, first in found
    )


def _is_weighted(node: onnx.NodeProto, wiring: Wiring) -> bool:
    if node.op_type not in _WEIGHTED:
        return False
    constant = [name in wiring.constants for name in node.input[:2]]
    return constant[1] or (node.op_type == "MatMul" and constant[0])


def _kinds(node: onnx.NodeProto, wiring: Wiring, first: bool, last: bool) -> frozenset[Kind]:
    kinds: set[Kind] = {"conv" if node.op_type in ("Conv", "ConvTranspose") else "linear"}
    if first:
        kinds.add("first")
    if last:
        kinds.add("classifier")
    if node.op_type == "Conv":
        group = cast(int, _attribute(node, "group", 1))
        if group > 1 and wiring.constants[node.input[1]].dims[1] == 1:
            kinds.add("depthwise")
    return frozenset(kinds)


def placement_from_graph(
    model: onnx.ModelProto, policy: QuantizePolicy
) -> tuple[QuantizedNode, ...]:
    """The nodes that run in INT8, in graph order; at least one, else GraphError.

    The graph is flat and simplified: a weight is an initializer or a Constant.
    """
    _check_float_graph(model)
    wiring = wiring_of(model.graph)
    weighted = weighted_nodes(model)
    _check_globs(policy, weighted)
    axes: dict[str, int] = {}
    for item in weighted:
        if item.kinds & policy.exclude_kinds or _matches(item.node, policy):
            continue
        axis = _weight_axis(wiring.producers[item.output], wiring)
        if axis is not None:
            axes[item.output] = axis
    if not axes:
        raise GraphError(
            f"a graph with {len(weighted)} weighted layers, none of which is to run in INT8",
            expected="at least one Conv, MatMul or Gemm with a constant float32 weight",
            do="simplify the graph, or exclude less",
        )
    only_quantized = _tensors_read_by_quantized_only(model.graph, wiring, axes)
    placed = []
    for output, axis in axes.items():
        node = wiring.producers[output]
        source = node.input[0]
        while (
            source in only_quantized
            and source in wiring.producers
            and wiring.producers[source].op_type in MOVERS
        ):
            source = wiring.producers[source].input[0]
        placed.append(
            QuantizedNode(
                node_label(node), node.op_type, output, node.input[0], source, node.input[1], axis
            )
        )
    return tuple(placed)


def _check_float_graph(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"):
            raise GraphError(
                f"a graph that is quantized already ({node.op_type} {node_label(node)})",
                expected="the FP32 graph",
                do="give the ONNX file that the exporter wrote",
            )


def _check_globs(policy: QuantizePolicy, weighted: tuple[WeightedNode, ...]) -> None:
    for glob in policy.exclude_nodes:
        if not any(fnmatchcase(item.node, glob) for item in weighted):
            examples = ", ".join(item.node for item in weighted[:3])
            raise GraphError(
                f"the pattern {glob!r}, which matches no layer of this graph",
                expected=f"a pattern over layer names such as {examples}",
                do="correct the pattern",
            )


def _matches(name: str, policy: QuantizePolicy) -> bool:
    return any(fnmatchcase(name, glob) for glob in policy.exclude_nodes)


def _weight_axis(node: onnx.NodeProto, wiring: Wiring) -> int | None:
    """Axis of the weight's output channels; None where the weight cannot be quantized."""
    weight = wiring.constants.get(node.input[1])
    if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
        return None
    if node.op_type == "Conv":
        return 0
    # A stack of matrices [B, K, N] has no single axis of output channels.
    if node.op_type not in ("MatMul", "Gemm") or len(weight.dims) != 2:
        return None
    return 0 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else 1


def _attribute(node: onnx.NodeProto, name: str, default: int) -> object:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _tensors_read_by_quantized_only(
    graph: onnx.GraphProto, wiring: Wiring, quantized: dict[str, int]
) -> frozenset[str]:
    """Tensors whose every reader is quantized, or moves them to quantized readers only."""
    found: set[str] = set()
    for node in reversed(graph.node):
        for name in node.output:
            readers = wiring.consumers.get(name, [])
            if (
                name not in wiring.outputs
                and readers
                and all(_reads_quantized(r, name, quantized, found) for r in readers)
            ):
                found.add(name)
    return frozenset(found)


def _reads_quantized(
    reader: onnx.NodeProto, name: str, quantized: dict[str, int], found: set[str]
) -> bool:
    if reader.input[0] != name or list(reader.input).count(name) > 1:
        return False
    return reader.output[0] in quantized or (reader.op_type in MOVERS and reader.output[0] in found)


def redirected_movers(
    model: onnx.ModelProto, placed: tuple[QuantizedNode, ...]
) -> frozenset[tuple[str, str]]:
    """(mover's output, source) of every Transpose or Reshape that must read a quantized source."""
    wiring = wiring_of(model.graph)
    redirected = set()
    for item in placed:
        tensor = item.activation
        while tensor != item.source:
            mover = wiring.producers[tensor]
            tensor = mover.input[0]
            if tensor == item.source:
                redirected.add((mover.output[0], tensor))
    return frozenset(redirected)
