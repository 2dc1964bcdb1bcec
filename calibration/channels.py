"""Tensors whose channels can be scaled, and where each channel enters the weights behind it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.macs import tensor_shapes
from calibration.onnx_file import node_label
from calibration.wiring import MOVERS, Wiring, attribute, wiring_of

Ids = NDArray[np.int64]  # the channel that each element of a tensor belongs to


@dataclass(frozen=True)
class Reader:
    """A layer that reads a scaled tensor.

    channels: broadcasts to the weight's shape; the channel that each weight is multiplied with.
    depthwise: each of its outputs reads one channel.
    """

    node: str
    output: str
    weight: NDArray[np.float32]
    channels: Ids
    depthwise: bool


@dataclass(frozen=True)
class Source:
    """A node whose output's channels can be divided, for all that reads it can make up for it.

    axis: of the channels in the output. own: indices of the node's constant inputs that make each
    channel, the channels on their first axis.
    free: each channel meets weights with scales of their own, so a factor costs them nothing.
    """

    node: str
    output: str
    channels: int
    axis: int
    own: tuple[int, ...]
    readers: tuple[Reader, ...]
    free: bool


def sources_of(model: onnx.ModelProto, quantized: Collection[str]) -> tuple[Source, ...]:
    """LayerNormalizations read by constant weights alone, and Convs by depthwise Convs alone.

    Read directly or through Transposes and Reshapes.
    quantized: outputs of the layers that run in INT8; one of the readers is among them.
    """
    wiring = wiring_of(model.graph)
    kinds = MOVERS | {"LayerNormalization", "Conv"}
    followed = [node.output[0] for node in model.graph.node if node.op_type in kinds]
    shapes = tensor_shapes(model, tuple(followed))
    sources = []
    for node in model.graph.node:
        axis = _channel_axis(node, wiring, shapes)
        if axis is None:
            continue
        output, shape = node.output[0], shapes[node.output[0]]
        sides = [-1 if i == axis else 1 for i in range(len(shape))]
        ids = np.broadcast_to(np.arange(shape[axis]).reshape(sides), shape)
        readers = _readers(output, ids, wiring, shapes)
        if not readers or not any(reader.output in quantized for reader in readers):
            continue
        free = all(reader.depthwise for reader in readers)
        if free or node.op_type == "LayerNormalization":
            own = tuple(i for i in range(1, len(node.input)) if node.input[i])
            label, count = node_label(node), shape[axis]
            sources.append(Source(label, output, count, axis, own, tuple(readers), free))
    return tuple(sources)


def _channel_axis(
    node: onnx.NodeProto, wiring: Wiring, shapes: Mapping[str, tuple[int, ...]]
) -> int | None:
    """Axis of the output's channels; None for a node whose channels cannot be scaled."""
    if node.op_type not in ("LayerNormalization", "Conv"):
        return None
    shape = shapes[node.output[0]]
    axis = 1 if node.op_type == "Conv" else len(shape) - 1
    if node.op_type != "Conv" and attribute(node, "axis", -1) not in (-1, axis):
        return None
    constants = [wiring.constants.get(name) for name in node.input[1:] if name]
    plain = all(
        tensor is not None
        and tensor.data_type == onnx.TensorProto.FLOAT
        and list(tensor.dims[:1]) == [shape[axis]]
        and (node.op_type == "Conv" or len(tensor.dims) == 1)
        for tensor in constants
    )
    return axis if plain else None


def _readers(
    tensor: str, ids: Ids, wiring: Wiring, shapes: Mapping[str, tuple[int, ...]]
) -> list[Reader] | None:
    """Layers behind `tensor`; None if something else reads it, or mixes channels."""
    if tensor in wiring.outputs:
        return None
    found: list[Reader] = []
    for node in wiring.consumers.get(tensor, []):
        behind: list[Reader] | None = None
        if list(node.input).count(tensor) == 1 and node.input[0] == tensor:
            if node.op_type in MOVERS:
                moved = _moved(node, ids, shapes[node.output[0]])
                behind = _readers(node.output[0], moved, wiring, shapes)
            else:
                behind = _reader(node, ids, wiring)
        if behind is None:
            return None
        found.extend(behind)
    return found


def _moved(node: onnx.NodeProto, ids: Ids, shape: tuple[int, ...]) -> Ids:
    if node.op_type != "Transpose":
        return ids.reshape(shape)
    backwards = list(range(ids.ndim))[::-1]
    return ids.transpose(cast(list[int], attribute(node, "perm", 0) or backwards))


def _reader(node: onnx.NodeProto, ids: Ids, wiring: Wiring) -> list[Reader] | None:
    tensor = wiring.constants.get(node.input[1]) if len(node.input) > 1 else None
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    weight = numpy_helper.to_array(tensor)
    by_input = _by_axis(ids, 1 if node.op_type == "Conv" else ids.ndim - 1)
    if by_input is None:
        return None
    if node.op_type == "Conv":
        outputs, inputs = weight.shape[:2]
        groups = cast(int, attribute(node, "group", 1))
        first = np.arange(outputs) // (outputs // groups) * inputs
        entering = by_input[first[:, None] + np.arange(inputs)]
        channels = entering.reshape(outputs, inputs, *[1] * (weight.ndim - 2))
    elif node.op_type == "MatMul" and weight.ndim == 2:
        channels = by_input[:, None]
    else:
        return None
    depthwise = node.op_type == "Conv" and weight.shape[1] == 1
    return [Reader(node_label(node), node.output[0], weight, channels, depthwise)]


def _by_axis(ids: Ids, axis: int) -> Ids | None:
    """The channel at each place of `axis`; None where it depends on other axes too."""
    lines = np.moveaxis(ids, axis, -1).reshape(-1, ids.shape[axis])
    return lines[0] if (lines == lines[0]).all() else None
