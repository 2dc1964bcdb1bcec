"""What float16 cannot hold: constants to clamp, and activations that would overflow."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from calibration.extremes import ExtremesSession
from calibration.onnx_file import node_label, probe_batch
from engines.errors import GraphError

LARGEST = 65504.0  # of float16
ROUNDS_TO_INFINITY = 65520.0
_MASK = LARGEST / 2  # leaves a score as much room below it
_PRODUCTS = frozenset({"Mul", "Div", "MatMul", "Gemm", "Conv", "ConvTranspose"})


def check_float16_range(original: onnx.ModelProto, tensors: tuple[str, ...]) -> None:
    """GraphError where a tensor that is to be float16 passes 65504 in the float32 graph.

    The float16 graph cannot show it here: ONNX Runtime's CPU provider computes most operators in
    float32 and drops the casts between them (1.31, at every optimisation level).
    """
    if not tensors:
        return
    session = ExtremesSession(without_huge_constants(original, _MASK), tensors)
    largest = np.abs(session.extremes(probe_batch(original))).max(axis=1)
    beyond = np.flatnonzero(~(largest < ROUNDS_TO_INFINITY))  # NaN, too
    if beyond.size:
        name, value = tensors[beyond[0]], largest[beyond[0]]
        writer = next(node for node in original.graph.node if name in node.output)
        raise GraphError(
            f"{beyond.size} tensors beyond float16, first {name} (magnitude {value:.4g}), "
            f"written by {node_label(writer)}",
            expected=f"magnitudes up to {LARGEST:.0f}",
            do="export without --fp16, or name their nodes in fp32_nodes",
        )


def without_huge_constants(original: onnx.ModelProto, magnitude: float) -> onnx.ModelProto:
    """A copy in which constants beyond float16 have this magnitude, and their own sign.

    They are attention masks (-1e9, -inf): the sum of a mask and a score is meant to be huge, and
    what is measured is to be the score's part in it. A factor is no mask and stays.
    """
    model = onnx.ModelProto()
    model.CopyFrom(original)
    factors = {n for node in model.graph.node if node.op_type in _PRODUCTS for n in node.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in factors:
            values = numpy_helper.to_array(tensor)
            instead = np.copysign(np.float32(magnitude), values)
            values = np.where(np.abs(values) > LARGEST, instead, values)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def clamped_to_float16(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Finite values moved to +-65504, and how many were.

    An infinity is the minus infinity of an attention mask, not a large number, and stays.
    """
    beyond = np.isfinite(values) & (np.abs(values) > LARGEST)
    return np.where(beyond, np.copysign(np.float32(LARGEST), values), values), int(beyond.sum())
