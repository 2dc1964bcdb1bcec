"""What the scales of a quantized file say: how much runs in INT8, and the range of each tensor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from calibration.macs import macs_from_model
from calibration.onnx_file import node_label
from calibration.ranges import Ranges, TensorRange
from calibration.wiring import MOVERS, Wiring, wiring_of
from exporter.qat.quantizers import DEQUANTIZE, Quantizer

LEVELS = 127
_KEEPS_THE_GRID = MOVERS | {"Relu", "MaxPool"}
_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class ScaleRecord:
    """nodes: names of the layers in INT8; float_nodes: weighted layers that are not.

    activations, weights: quantized tensors. int8_macs_percent: share of all multiply-accumulates.
    """

    nodes: tuple[str, ...]
    float_nodes: tuple[str, ...]
    activations: int
    weights: int
    int8_macs_percent: float


def scale_record(model: onnx.ModelProto, quantizers: Sequence[Quantizer]) -> ScaleRecord:
    """What of `model`, a Q/DQ graph, runs in INT8: layers both of whose inputs are dequantized."""
    wiring = wiring_of(model.graph)
    layers = [node for node in model.graph.node if node.op_type in _WEIGHTED]
    quantized = {node.output[0] for node in layers if _reads_pairs(node, wiring)}
    macs = macs_from_model(model)
    names = [(node_label(node), node.output[0] in quantized) for node in layers]
    int8 = [item for item in quantizers if item.zero_point.dtype.name != "int32"]
    return ScaleRecord(
        nodes=tuple(name for name, inside in names if inside),
        float_nodes=tuple(name for name, inside in names if not inside),
        activations=len({item.source for item in int8 if not item.constant}),
        weights=len({item.source for item in int8 if item.constant}),
        int8_macs_percent=100.0 * sum(macs[o] for o in quantized) / max(sum(macs.values()), 1),
    )


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
