"""Multiply-accumulates of every convolution and matrix product, for one image."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper

from calibration.onnx_file import fixed_batch, image_input, session_from_model

_COUNTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


def macs_from_model(model: onnx.ModelProto) -> dict[str, int]:
    """Node's first output -> multiply-accumulates at batch 1.

    The shapes are those that ONNX Runtime computes, for ONNX's shape inference gives up at a
    Reshape when the batch size is open.
    """
    counted = [node for node in model.graph.node if node.op_type in _COUNTED]
    names = dict.fromkeys(n for node in counted for n in (*node.input[:2], node.output[0]))
    shapes = tensor_shapes(model, tuple(names))
    return {node.output[0]: _macs(node, shapes) for node in counted}


def tensor_shapes(model: onnx.ModelProto, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes at batch 1, or at the graph's batch where that is fixed."""
    if not names:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = tuple(f"shape_of_{index}" for index in range(len(names)))
    for name, output in zip(names, outputs, strict=True):
        watched.graph.node.append(helper.make_node("Shape", [name], [output]))
    session = session_from_model(watched, extra_outputs=outputs)
    input_name, hwc = image_input(model)
    values = session.run(
        list(outputs), {input_name: np.zeros((fixed_batch(model), *hwc), dtype=np.uint8)}
    )
    return {
        name: tuple(int(side) for side in value) for name, value in zip(names, values, strict=True)
    }


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    left, right, out = (shapes[n] for n in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if node.op_type == "MatMul":
        return math.prod(out) * left[-1]
    return math.prod(left) * out[1]  # Gemm, whichever of its inputs is transposed
