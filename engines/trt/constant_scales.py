"""Scales of a network's constants, which a calibration cache cannot name in advance.

TensorRT's parser makes a layer of each weight of a MatMul and each bias of an Add, and another that
gives it the other's rank: "(Unnamed Layer* 8) [Constant]_output" in 8.5, "w_output" and
"ONNXTRT_Broadcast_14_output" in newer ones. Implicit INT8 falls back to floating point for a layer
with an input of no known scale, so the caches that TensorRT writes itself have lines for these too.
"""

from __future__ import annotations

import struct
from typing import Any, Dict

import numpy as np

from engines.trt.api import TensorRt

LEVELS = 127


def constant_scale_lines(network: Any, tensorrt: TensorRt) -> bytes:
    """Lines of a calibration cache, for float32 constants and what is a reshaped one of them.

    A scale is the largest magnitude / 127; constants of zeros alone have none.
    """
    kinds = tensorrt.module.LayerType
    scales: Dict[str, float] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        output = layer.get_output(0)
        if layer.type == kinds.CONSTANT:
            if output.dtype == tensorrt.module.DataType.FLOAT:
                scales[output.name] = _largest_magnitude(layer, tensorrt) / LEVELS
        elif layer.type == kinds.SHUFFLE:
            source = layer.get_input(0)
            if source is not None and source.name in scales:
                scales[output.name] = scales[source.name]
    lines = (
        f"{name}: {struct.pack('>f', scale).hex()}\n" for name, scale in scales.items() if scale > 0
    )
    return "".join(lines).encode("utf-8")


def _largest_magnitude(layer: Any, tensorrt: TensorRt) -> float:
    # The bindings give every layer as an ILayer; its true class is reached by naming it.
    layer.__class__ = tensorrt.module.IConstantLayer
    weights = np.asarray(layer.weights, dtype=np.float32)
    return float(np.abs(weights).max()) if weights.size else 0.0
