"""The Q/DQ pairs of a graph that somebody else quantized: read, and refused where they must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_file import node_label
from calibration.wiring import Wiring, attribute, wiring_of
from engines.errors import GraphError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Quantized operators of ONNX and of ONNX Runtime (QLinearConv, ConvInteger, QGemm, QAttention, ...)
_INTEGER_PARTS = ("QLinear", "Integer", "DynamicQuantize", "QGemm", "QAttention", "FakeQuant")
_AGAIN = (
    "quantize again to int8 with zero point 0 (ONNX Runtime: quantize_static with "
    "activation_type=QInt8, ActivationSymmetric and WeightSymmetric; torch: qint8 with "
    "per_tensor_symmetric and per_channel_symmetric)"
)


@dataclass(frozen=True)
class Quantizer:
    """One DequantizeLinear, with its QuantizeLinear unless it reads a stored integer constant.

    output: the tensor it writes, which identifies it. source: the tensor that is quantized, or the
    integer constant. scale and zero_point: as stored, the latter zeros where the file has none.
    axis: None for one scale. constant: `source` is one, thus a weight or a bias.
    """

    node: str
    output: str
    source: str
    scale: NDArray[Any]
    zero_point: NDArray[Any]
    axis: int | None
    constant: bool
    stored: bool


def quantizers_from_graph(
    model: onnx.ModelProto, *, asymmetric: bool = False
) -> tuple[Quantizer, ...]:
    """Every pair of the graph, in its order; scales and zero points are constants in it.

    Raises GraphError for a graph without any, and for what TensorRT refuses: its parser says
    "zero point must be zero" for others ("TRT only supports symmetric quantization" in 8.5,
    NVIDIA/TensorRT issue 2774; the same in TensorRT-RTX 1.7) and knows no integer operators.
    asymmetric: take zero points and uint8, which ONNX Runtime runs and its tools write by default.
    """
    _check_operators(model)
    wiring = wiring_of(model.graph)
    found = []
    for node in model.graph.node:
        if node.op_type == QUANTIZE:
            _check_read_by_pairs(node, wiring)
        elif node.op_type == DEQUANTIZE:
            quantizer = _quantizer(node, wiring)
            _check_scale(quantizer, node)
            _check_channels(quantizer, node, wiring)
            _check_type(quantizer, node, asymmetric=asymmetric)
            found.append(quantizer)
    if not found:
        raise GraphError(
            "an ONNX file without Q/DQ pairs",
            expected="one that is quantized already (QuantizeLinear and DequantizeLinear)",
            do="to quantize it here, give the checkpoint it was exported from, with --int8 --calib",
        )
    return tuple(found)


def _check_operators(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        pair = node.op_type in (QUANTIZE, DEQUANTIZE)
        if pair and node.domain in ("", "ai.onnx"):
            continue
        if pair or any(part in node.op_type for part in (*_INTEGER_PARTS, QUANTIZE)):
            kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
            raise GraphError(
                f"{node_label(node)}, an operator {kind}",
                expected="INT8 as pairs of ONNX's own QuantizeLinear and DequantizeLinear, whose "
                "scales are in the file",
                do="quantize again statically, in the Q/DQ format (quant_format=QuantFormat.QDQ, "
                "UseQDQContribOps off; ModelOpt: quantize_mode='int8')",
            )


def _quantizer(node: onnx.NodeProto, wiring: Wiring) -> Quantizer:
    writer = wiring.producers.get(node.input[0])
    stored = node.input[0] in wiring.constants
    if not stored and (writer is None or writer.op_type != QUANTIZE):
        raise _refused(
            node, "of what no QuantizeLinear wrote", "Q/DQ pairs, one node right after the other"
        )
    scale = _parameter(node, 1, wiring)
    if scale is None:
        raise _refused(
            node,
            "whose scale is computed while it runs (per token, or not folded)",
            "scales that are constants of the file",
        )
    source = node.input[0] if stored or writer is None else writer.input[0]
    return Quantizer(
        node=node_label(node),
        output=node.output[0],
        source=source,
        scale=scale,
        zero_point=_zero_point(node, scale, wiring),
        axis=_axis(node) if scale.size > 1 else None,
        constant=source in wiring.constants,
        stored=stored,
    )


def _zero_point(node: onnx.NodeProto, scale: NDArray[Any], wiring: Wiring) -> NDArray[Any]:
    if len(node.input) > 2 and node.input[2]:
        given = _parameter(node, 2, wiring)
        if given is None:
            raise _refused(node, "whose zero point is computed while it runs", "a constant")
        return given
    writer = wiring.producers.get(node.input[0])
    if node.input[0] in wiring.constants:
        kind = wiring.constants[node.input[0]].data_type
    elif writer is not None and len(writer.input) > 2 and writer.input[2] in wiring.constants:
        kind = wiring.constants[writer.input[2]].data_type
    else:  # a QuantizeLinear without a zero point writes uint8, from opset 21 on what it says
        kind = cast(int, attribute(writer, "output_dtype", 0)) if writer is not None else 0
    dtype = helper.tensor_dtype_to_np_dtype(kind or TensorProto.UINT8)
    return np.zeros(scale.shape, dtype=dtype)


def _parameter(node: onnx.NodeProto, index: int, wiring: Wiring) -> NDArray[Any] | None:
    tensor = wiring.constants.get(node.input[index])
    return None if tensor is None else numpy_helper.to_array(tensor)


def _axis(node: onnx.NodeProto) -> int:
    return cast(int, attribute(node, "axis", 1))


def _check_scale(quantizer: Quantizer, node: onnx.NodeProto) -> None:
    scale = quantizer.scale
    if scale.dtype not in (np.float32, np.float16):
        raise _refused(node, f"with a scale of {scale.dtype}", "float32 or float16")
    if not np.isfinite(scale).all() or not (scale > 0).all() or scale.size == 0:
        raise _refused(node, "with a scale that is not above 0", "finite, positive scales")
    if scale.ndim > 1 or attribute(node, "block_size", 0):
        raise _refused(node, "with scales per block", "one scale, or one for each channel")


def _check_channels(quantizer: Quantizer, node: onnx.NodeProto, wiring: Wiring) -> None:
    scales, zero_points = quantizer.scale.size, quantizer.zero_point.size
    if zero_points != scales:
        raise _refused(node, f"with {scales} scales and {zero_points} zero points", "as many")
    if quantizer.axis is None or not quantizer.constant:
        return
    sides = wiring.constants[quantizer.source].dims
    axis = quantizer.axis
    if not -len(sides) <= axis < len(sides) or sides[axis] != scales:
        what = f"with {scales} scales on axis {axis} of {list(sides)}"
        raise _refused(node, what, "one for each channel of that axis")


def _check_type(quantizer: Quantizer, node: onnx.NodeProto, *, asymmetric: bool) -> None:
    kind, zero_points = quantizer.zero_point.dtype.name, quantizer.zero_point
    if quantizer.stored and kind == "int32":
        if zero_points.any():
            raise _refused(node, "an int32 bias with a zero point", "a bias with zero point 0")
        return
    if kind not in (("int8", "uint8") if asymmetric else ("int8",)):
        expected = "int8, the type that TensorRT computes in"
        raise _refused(node, f"to {kind}", expected, on_cpu=kind == "uint8")
    if asymmetric:
        return
    if zero_points.any():
        expected = "zero point 0, the only one that TensorRT takes"
        raise _refused(node, "with a zero point that is not 0", expected, on_cpu=True)
    if quantizer.axis is not None and not quantizer.constant:
        what = "with a scale per channel for an activation"
        raise _refused(node, what, "one scale for it", on_cpu=True)


def _check_read_by_pairs(node: onnx.NodeProto, wiring: Wiring) -> None:
    readers = wiring.consumers.get(node.output[0], [])
    if not readers or node.output[0] in wiring.outputs:
        raise _refused(node, "without a DequantizeLinear", "Q/DQ pairs")
    for reader in readers:
        if reader.op_type != DEQUANTIZE or not _same_parameters(node, reader, wiring):
            raise _refused(
                node,
                f"read by {node_label(reader)} ({reader.op_type})",
                "a DequantizeLinear of the same scale and zero point",
            )


def _same_parameters(node: onnx.NodeProto, reader: onnx.NodeProto, wiring: Wiring) -> bool:
    """By value: ModelOpt gives both nodes constants of their own."""
    left, right = _parameter(node, 1, wiring), _parameter(reader, 1, wiring)
    if left is None or right is None or not np.array_equal(left, right):
        # What is computed while it runs has another message.
        return left is None and right is None
    if not np.array_equal(_zero_point(reader, right, wiring), _own_zero_point(node, left, wiring)):
        return False
    return left.size == 1 or _axis(node) == _axis(reader)


def _own_zero_point(node: onnx.NodeProto, scale: NDArray[Any], wiring: Wiring) -> NDArray[Any]:
    given = _parameter(node, 2, wiring) if len(node.input) > 2 and node.input[2] else None
    return np.zeros(scale.shape) if given is None else given


def _refused(node: onnx.NodeProto, what: str, expected: str, *, on_cpu: bool = False) -> GraphError:
    """on_cpu: ONNX Runtime alone would take it."""
    also = "; or pass --target cpu, for ONNX Runtime alone" if on_cpu else ""
    return GraphError(
        f"{node_label(node)}, a {node.op_type} {what}", expected=expected, do=f"{_AGAIN}{also}"
    )
