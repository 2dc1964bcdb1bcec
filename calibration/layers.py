"""The layers of a graph that INT8 can take, and of which kinds each of them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import onnx

from calibration.onnx_file import data_inputs, node_label
from calibration.wiring import Wiring, attribute, wiring_of

Kind = Literal["first", "classifier", "depthwise", "conv", "linear", "product", "residual"]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


@dataclass(frozen=True)
class QuantizableNode:
    """A node on the image's path; `output` identifies it, for node names need not be unique.

    kinds: "conv" or "linear" for one with a constant weight, and with it "first" (no weighted layer
    between it and the image), "classifier" (none between it and the output) or "depthwise";
    "product" is a MatMul of two activations, "residual" an Add of two activations.
    """

    node: str
    op_type: str
    output: str
    kinds: frozenset[Kind]


def weighted_nodes(model: onnx.ModelProto) -> tuple[QuantizableNode, ...]:
    """Every Conv, ConvTranspose, MatMul and Gemm with a constant weight on the image's path."""
    floating = {"product", "residual"}
    return tuple(item for item in quantizable_nodes(model) if not item.kinds & floating)


def quantizable_nodes(model: onnx.ModelProto) -> tuple[QuantizableNode, ...]:
    """The weighted nodes, products and additions of two activations, in graph order."""
    wiring = wiring_of(model.graph)
    from_image = {value.name for value in data_inputs(model)}
    after_weighted: set[str] = set()
    before_weighted = _before_weighted(model.graph, wiring)
    found = []
    for node in model.graph.node:
        if from_image.isdisjoint(node.input):
            continue
        weighted, later = _is_weighted(node, wiring), not after_weighted.isdisjoint(node.input)
        if weighted:
            last = node.output[0] not in before_weighted
            kinds = _weighted_kinds(node, wiring, first=not later, last=last)
        else:
            kinds = _kinds_of_two(node, from_image)
        if kinds:
            found.append(QuantizableNode(node_label(node), node.op_type, node.output[0], kinds))
        from_image.update(node.output)
        if weighted or later:
            after_weighted.update(node.output)
    return tuple(found)


def _before_weighted(graph: onnx.GraphProto, wiring: Wiring) -> set[str]:
    """Tensors on the way to a weighted node."""
    found: set[str] = set()
    for node in reversed(graph.node):
        if _is_weighted(node, wiring) or not found.isdisjoint(node.output):
            found.update(node.input)
    return found


def _is_weighted(node: onnx.NodeProto, wiring: Wiring) -> bool:
    if node.op_type not in _WEIGHTED:
        return False
    constant = [name in wiring.constants for name in node.input[:2]]
    return constant[1] or (node.op_type == "MatMul" and constant[0])


def _weighted_kinds(
    node: onnx.NodeProto, wiring: Wiring, *, first: bool, last: bool
) -> frozenset[Kind]:
    kinds: set[Kind] = {"conv" if node.op_type in ("Conv", "ConvTranspose") else "linear"}
    if first:
        kinds.add("first")
    if last:
        kinds.add("classifier")
    if node.op_type == "Conv":
        group = cast(int, attribute(node, "group", 1))
        if group > 1 and wiring.constants[node.input[1]].dims[1] == 1:
            kinds.add("depthwise")
    return frozenset(kinds)


def _kinds_of_two(node: onnx.NodeProto, from_image: set[str]) -> frozenset[Kind]:
    """For operators whose two inputs both come from the image."""
    if node.op_type in ("MatMul", "Add") and from_image.issuperset(node.input):
        return frozenset({"product" if node.op_type == "MatMul" else "residual"})
    return frozenset()


def weight_axis(node: onnx.NodeProto, ndim: int) -> int | None:
    """Axis of the output channels in the weight, the node's second input, of `ndim` axes.

    None where there is no single one: a stack of matrices [B, K, N], or a ConvTranspose.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type not in ("MatMul", "Gemm") or ndim != 2:
        return None
    return 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1
