"""What must hold of every graph with Q/DQ pairs that is written here."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.layers import quantizable_nodes, weight_axis
from calibration.onnx_file import node_label
from calibration.wiring import Wiring, attribute, wiring_of
from engines.errors import GraphError

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def check_pairs(model: onnx.ModelProto, *, residuals: bool = False) -> None:
    """GraphError unless all of these hold.

    Every scale is a constant, finite and positive, its zero point int8 and 0. Every QuantizeLinear
    is read by DequantizeLinears of the same scale and axis alone, every DequantizeLinear reads one
    or an int8 constant, and what it writes is read. Weights have a scale per output channel,
    activations one. No addition of two activations reads a pair unless `residuals`.
    """
    wiring = wiring_of(model.graph)
    for node in model.graph.node:
        if node.op_type in _QUANTIZERS:
            _check_parameters(node, wiring)
        if node.op_type == "QuantizeLinear":
            _check_readers(node, wiring)
        elif node.op_type == "DequantizeLinear":
            _check_dequantize(node, wiring)
        else:
            _check_channels(node, wiring)
    for item in quantizable_nodes(model):
        if "residual" in item.kinds and not residuals:
            _check_no_pair(wiring.producers[item.output], wiring)


def _bad(node: onnx.NodeProto, what: str, expected: str) -> GraphError:
    return GraphError(
        f"{node_label(node)} ({node.op_type}) {what}",
        expected=expected,
        do="report this as a bug, with the ONNX file",
    )


def _check_parameters(node: onnx.NodeProto, wiring: Wiring) -> None:
    constants = [wiring.constants.get(name) for name in node.input[1:3]]
    if len(constants) < 2 or any(tensor is None for tensor in constants):
        raise _bad(node, "without a constant scale and zero point", "constants")
    scale, zero = (numpy_helper.to_array(cast(onnx.TensorProto, t)) for t in constants)
    if not np.isfinite(scale).all() or not (scale > 0).all():
        raise _bad(node, "with a scale that is not positive", "finite, positive scales")
    if zero.dtype != np.int8 or zero.any() or zero.shape != scale.shape:
        raise _bad(node, f"with a zero point of {zero.dtype}", "int8 zeros, one for each scale")


def _check_readers(node: onnx.NodeProto, wiring: Wiring) -> None:
    readers = wiring.consumers.get(node.output[0], [])
    if not readers or node.output[0] in wiring.outputs:
        raise _bad(node, "without a DequantizeLinear", "Q/DQ pairs")
    for reader in readers:
        same = reader.input[1:] == node.input[1:] and _axis(reader) == _axis(node)
        if reader.op_type != "DequantizeLinear" or not same:
            raise _bad(node, "without a DequantizeLinear of the same scale", "Q/DQ pairs")


def _check_dequantize(node: onnx.NodeProto, wiring: Wiring) -> None:
    stored = wiring.constants.get(node.input[0])
    if stored is not None and stored.data_type != onnx.TensorProto.INT8:
        raise _bad(node, "of a constant that is not int8", "int8 weights")
    if stored is None and not _is_written_by(node.input[0], "QuantizeLinear", wiring):
        raise _bad(node, "of what no QuantizeLinear wrote", "Q/DQ pairs")
    if not wiring.consumers.get(node.output[0]) and node.output[0] not in wiring.outputs:
        raise _bad(node, "that nothing reads", "no pair without a reader")


def _check_no_pair(node: onnx.NodeProto, wiring: Wiring) -> None:
    if any(_is_written_by(name, "DequantizeLinear", wiring) for name in node.input):
        raise _bad(node, "that adds two activations, one of them quantized",
                   "residual additions in floating point")  # fmt: skip


def _check_channels(node: onnx.NodeProto, wiring: Wiring) -> None:
    for index, name in enumerate(node.input):
        if not _is_written_by(name, "DequantizeLinear", wiring):
            continue
        pair = wiring.producers[name]
        scale = numpy_helper.to_array(wiring.constants[pair.input[1]])
        weight = _stored(pair, wiring)
        if weight is None:
            if scale.ndim:
                raise _bad(node, f"whose input {index} has a scale per channel", "one scale")
            continue
        axis = weight_axis(node, weight.ndim)
        if axis is None:
            raise _bad(node, "with a quantized weight", "one with one axis of output channels")
        if scale.shape != (weight.shape[axis],) or _axis(pair) != axis:
            raise _bad(
                node,
                f"whose weight has {scale.size} scales on axis {_axis(pair)}",
                f"one for each of {weight.shape[axis]} output channels on axis {axis}",
            )


def _stored(dequantize: onnx.NodeProto, wiring: Wiring) -> NDArray[np.generic] | None:
    """The constant behind a pair, or behind a DequantizeLinear alone; None for an activation."""
    name = dequantize.input[0]
    if _is_written_by(name, "QuantizeLinear", wiring):
        name = wiring.producers[name].input[0]
    tensor = wiring.constants.get(name)
    return None if tensor is None else numpy_helper.to_array(tensor)


def _is_written_by(name: str, op_type: str, wiring: Wiring) -> bool:
    return name in wiring.producers and wiring.producers[name].op_type == op_type


def _axis(node: onnx.NodeProto) -> int:
    return cast(int, attribute(node, "axis", 1))
