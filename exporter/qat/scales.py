"""What the scales of a quantized file say: how much runs in INT8, and the range of each tensor."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass

import onnx

from calibration.macs import macs_from_model
from calibration.onnx_file import node_label
from calibration.ranges import Ranges, TensorRange
from calibration.wiring import MOVERS, Wiring, wiring_of
from exporter.qat.quantizers import DEQUANTIZE, QUANTIZE, Quantizer

LEVELS = 127
_KEEPS_THE_GRID = MOVERS | {"Relu", "MaxPool"}
_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class ScaleRecord:
    """nodes: names of the layers in INT8; float_nodes: weighted layers that are not.

    activations, weights: quantized tensors. int8_macs_percent: share of all multiply-accumulates;
    int8_weighted_percent: share of those of layers with a constant weight.
    """

    nodes: tuple[str, ...]
    float_nodes: tuple[str, ...]
    activations: int
    weights: int
    int8_macs_percent: float
    int8_weighted_percent: float


def scale_record(model: onnx.ModelProto, quantizers: Sequence[Quantizer]) -> ScaleRecord:
    """What of `model`, a Q/DQ graph, runs in INT8: layers both of whose inputs are dequantized."""
    wiring = wiring_of(model.graph)
    layers = [node for node in model.graph.node if node.op_type in _WEIGHTED]
    quantized = {node.output[0] for node in layers if _reads_pairs(node, wiring)}
    weighted = {node.output[0] for node in layers if _has_weight(node, wiring)}
    macs = macs_from_model(model)

    def share(of: Set[str]) -> float:
        return 100.0 * sum(macs[o] for o in quantized & of) / max(sum(macs[o] for o in of), 1)

    names = [(node_label(node), node.output[0] in quantized) for node in layers]
    int8 = [item for item in quantizers if item.zero_point.dtype.name != "int32"]
    return ScaleRecord(
        nodes=tuple(name for name, inside in names if inside),
        float_nodes=tuple(name for name, inside in names if not inside),
        activations=len({item.source for item in int8 if not item.constant}),
        weights=len({item.source for item in int8 if item.constant}),
        int8_macs_percent=share(macs.keys()),
        int8_weighted_percent=share(weighted),
    )


def _has_weight(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether its second input is a constant, plain or behind a pair."""
    name = node.input[1]
    while name not in wiring.constants and name in wiring.producers:
        writer = wiring.producers[name]
        if writer.op_type not in _KEEPS_THE_GRID | {QUANTIZE, DEQUANTIZE}:
            return False
        name = writer.input[0]
    return name in wiring.constants


def _reads_pairs(node: onnx.NodeProto, wiring: Wiring) -> bool:
    return all(_is_dequantized(name, wiring) for name in node.input[:2])


def _is_dequantized(name: str, wiring: Wiring) -> bool:
    """Also behind what leaves values on their grid: torch transposes a weight behind its pair."""
    writer = wiring.producers.get(name)
    while writer is not None and writer.op_type in _KEEPS_THE_GRID:
        writer = wiring.producers.get(writer.input[0])
    return writer is not None and writer.op_type == DEQUANTIZE


def ranges_from_quantizers(
    model: onnx.ModelProto, quantizers: Sequence[Quantizer]
) -> Ranges | None:
    """The clip of each quantized activation of `model`, the graph without pairs: scale * 127.

    None where that graph has none of their tensors. A tensor that was quantized twice has the
    larger one.
    """
    tensors: Collection[str] = {name for node in model.graph.node for name in node.output}
    clips: dict[str, float] = {}
    for item in quantizers:
        if not item.constant and item.scale.size == 1 and item.source in tensors:
            clip = float(item.scale.reshape(())) * LEVELS
            clips[item.source] = max(clip, clips.get(item.source, 0.0))
    if not clips:
        return None
    return Ranges(
        method="file",
        images=0,
        tensors={name: TensorRange(-clip, clip, clip) for name, clip in clips.items()},
    )
