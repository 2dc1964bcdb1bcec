"""Which tensors TensorRT's implicit INT8 must know besides those that Q/DQ quantizes.

Implicit INT8 (TensorRT up to 10) runs a layer in INT8 only if the ranges of all its floating-point
inputs and outputs are known; for others it logs "Missing scale and zero-point for tensor". It fuses
a layer with its bias and its ReLU first and then asks for no range in between, and a Transpose or
Reshape is a layer of its own (NVIDIA/TensorRT issues 25, 2031 and 2114).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from calibration.placement import QuantizedNode
from calibration.wiring import Wiring, bias_addition, sole_reader, wiring_of


@dataclass(frozen=True)
class ImplicitTensors:
    """measured: what INT8 layers write, after bias and ReLU. same_as: tensor -> one of its range.

    That one is a quantized source, for what Transposes and Reshapes make of it, or is in
    `measured`, for what lies between a layer and its fused end.
    """

    measured: tuple[str, ...]
    same_as: Mapping[str, str]


def implicit_tensors(model: onnx.ModelProto, placed: tuple[QuantizedNode, ...]) -> ImplicitTensors:
    """The tensors of `placed` that are no quantized source; sums of two activations stay out."""
    wiring = wiring_of(model.graph)
    sources = {read.source for item in placed for read in item.inputs}
    measured: dict[str, None] = {}
    same_as: dict[str, str] = {}
    for item in placed:
        for read in item.inputs:
            tensor = read.activation
            while tensor != read.source:
                same_as[tensor] = read.source
                tensor = wiring.producers[tensor].input[0]
        between = []
        end = item.output
        while (fused := _fused_output(end, wiring)) is not None:
            between.append(end)
            end = fused
        same_as.update((name, end) for name in between if name not in sources)
        if end not in sources:
            measured[end] = None
    return ImplicitTensors(tuple(measured), same_as)


def _fused_output(tensor: str, wiring: Wiring) -> str | None:
    """Output of the bias addition or ReLU that alone reads `tensor`."""
    reader = bias_addition(tensor, wiring) or sole_reader(tensor, wiring, "Relu")
    return None if reader is None else reader.output[0]
