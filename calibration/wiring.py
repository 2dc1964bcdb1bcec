"""Who writes and who reads each tensor of a flat graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field
from typing import cast

import onnx
from onnx import TensorProto, helper

from engines.errors import GraphError

# Operators that only move values, so that a Q/DQ pair commutes with them.
MOVERS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Wiring:
    """Writer and readers of each tensor; constants are initializers and Constant nodes."""

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
        tensor = tensor_of_constant(node)
        if tensor is not None:
            wiring.constants[node.output[0]] = tensor
    return wiring


def tensor_of_constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """What a Constant node holds; None for another node, and for text or a sparse tensor.

    Raises GraphError for a Constant that holds nothing.
    """
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    if not node.attribute or not node.output:
        raise GraphError(
            f"the Constant {(node.name or 'without a name')!r}, which holds no value",
            expected="a value in each Constant",
            do="export the graph again",
        )
    item, name = node.attribute[0], node.output[0]
    match item.name:
        case "value":
            return cast(onnx.TensorProto, item.t)
        case "value_float":
            return helper.make_tensor(name, TensorProto.FLOAT, [], [item.f])
        case "value_floats":
            return helper.make_tensor(name, TensorProto.FLOAT, [len(item.floats)], item.floats)
        case "value_int":
            return helper.make_tensor(name, TensorProto.INT64, [], [item.i])
        case "value_ints":
            return helper.make_tensor(name, TensorProto.INT64, [len(item.ints)], item.ints)
    return None


def attribute(node: onnx.NodeProto, name: str, default: int) -> object:
    """The value of an attribute, `default` where the node does not have it."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def sole_reader(tensor: str, wiring: Wiring, op_type: str) -> onnx.NodeProto | None:
    """The node that alone reads `tensor`, if it is of that type; an output has no sole reader."""
    readers = wiring.consumers.get(tensor, [])
    alone = len(readers) == 1 and tensor not in wiring.outputs
    return readers[0] if alone and readers[0].op_type == op_type else None


def bias_addition(tensor: str, wiring: Wiring) -> onnx.NodeProto | None:
    """The addition of a constant that alone reads `tensor`."""
    add = sole_reader(tensor, wiring, "Add")
    return add if add is not None and any(n in wiring.constants for n in add.input) else None


def moved_from(tensor: str, known: Container[str], wiring: Wiring) -> str | None:
    """The nearest of `known` that Transposes and Reshapes made `tensor` from, or is; else None.

    It holds the same values.
    """
    while tensor not in known:
        writer = wiring.producers.get(tensor)
        if writer is None or writer.op_type not in MOVERS:
            return None
        tensor = writer.input[0]
    return tensor
