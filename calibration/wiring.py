"""Who writes and who reads each tensor of a flat graph."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import onnx

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
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            wiring.constants[node.output[0]] = node.attribute[0].t
    return wiring


def attribute(node: onnx.NodeProto, name: str, default: int) -> object:
    """The value of an attribute, `default` where the node does not have it."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default
