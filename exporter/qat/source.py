"""A quantized ONNX file, read and brought into this project's form."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from calibration.onnx_file import model_from_onnx_file, node_label, opset_of
from engines.bundle import InputSpec
from engines.errors import ConfigError, GraphError
from exporter.load import checked_normalisation
from exporter.onnx_graph import GraphSpec
from exporter.qat.graph_rewrites import (
    for_tensorrt,
    has_float16,
    in_float32,
    with_constants_in_place,
    without_pairs,
)
from exporter.qat.image_graph import image_graph_from_planes, with_batch
from exporter.qat.outside import (
    Outside,
    logits_of_labels,
    logits_shape,
    normalisation_in_graph,
    outside_of,
)
from exporter.qat.quantizers import Quantizer, quantizers_from_graph
from exporter.request import ExportRequest, GraphOptions, LoadOptions


@dataclass(frozen=True)
class QuantizedSource:
    """given: the file's graph as it was quantized, uint8 images in and labels out, FP16 included.

    int8: the same graph in FP32 beside INT8, in the form that every TensorRT parses. float32: int8
    without its pairs. half: whether `given` computes in FP16. own: the quantizers of the file;
    quantizers: the same in `given`, where a tensor called as its input or outputs is renamed.
    asymmetric: whether it has zero points or uint8, which only ONNX Runtime takes.
    """

    path: Path
    given: onnx.ModelProto
    int8: onnx.ModelProto
    float32: onnx.ModelProto
    half: bool
    own: tuple[Quantizer, ...]
    quantizers: tuple[Quantizer, ...]
    asymmetric: bool
    input: InputSpec
    outputs: tuple[str, ...]
    num_outputs: int
    opset: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def quantized_source(request: ExportRequest, *, on_cpu: bool) -> QuantizedSource:
    """Read `request.checkpoint`. on_cpu: the bundle is for ONNX Runtime alone.

    Raises GraphError for a file that cannot be taken, ConfigError for options that contradict it.
    """
    path = request.checkpoint
    model = with_constants_in_place(model_from_onnx_file(path))
    own = quantizers_from_graph(model, asymmetric=on_cpu)
    outside, opset = outside_of(model), opset_of(model)
    if opset < 13:
        raise GraphError(
            f"opset {opset} in {path}",
            expected="13 or newer, the first with scales per channel",
            do="export it again with opset 17",
        )
    _check_names(model)
    _check_options(request.load, request.graph, outside)
    warnings: list[str] = []
    given, input_spec, outputs = _as_images(model, outside, request, warnings)
    half = has_float16(given)
    int8, notes = _portable(in_float32(given) if half else given, on_cpu=on_cpu)
    if half:
        notes = (*notes, "computes in FP16: model.int8.onnx has the same numbers in FP32")
    return QuantizedSource(
        path=path,
        given=given,
        int8=int8,
        float32=without_pairs(int8),
        half=half,
        own=own,
        quantizers=quantizers_from_graph(given, asymmetric=on_cpu),
        asymmetric=any(
            item.zero_point.any() or item.zero_point.dtype.name == "uint8" for item in own
        ),
        input=input_spec,
        outputs=outputs,
        num_outputs=logits_shape(int8, logits_of_labels(int8))[1],
        opset=opset,
        notes=notes,
        warnings=tuple(warnings),
    )


def _check_names(model: onnx.ModelProto) -> None:
    """A bundle names the nodes that stay in FP32, and holds no control characters."""
    for node in model.graph.node:
        if any(unicodedata.category(character) == "Cc" for character in node_label(node)):
            raise GraphError(
                f"a node named {node_label(node)!r}",
                expected="names without control characters",
                do="rename it, or do not trust this file",
            )


def _portable(model: onnx.ModelProto, *, on_cpu: bool) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    if on_cpu:  # ONNX Runtime runs what its tools write, and int32 biases faster
        return model, ()
    result, record = for_tensorrt(model)
    notes = []
    if record.biases:
        notes.append(f"{record.biases} int32 biases are float constants now, of the same values")
    if record.weights:
        notes.append(f"{record.weights} int8 weights are float constants with a pair now")
    return result, tuple(notes)


def _check_options(load: LoadOptions, graph: GraphOptions, outside: Outside) -> None:
    """What is inside the file cannot be said again: to ignore an option would mislead."""
    own = outside.form == "images"
    told_output = graph.output_told or graph.output != "labels"
    fixed_output = own and told_output and set(_names(graph.output)) != set(outside.outputs)
    told = {
        "--model": load.model is not None,
        "--keep-classes": load.keep_classes is not None,
        "--opset": graph.opset is not None,
        "--grid-sample": graph.grid_sample is not None,
        "--mask-products": graph.mask_products is not None,
        "--mean": own and load.mean is not None,
        "--std": own and load.std is not None,
        "--size": graph.size is not None and not _fits(graph.size, outside.hw),
        "--output": fixed_output,
        "--dynamic-batch": graph.batch != (1, 1, 1) and outside.batch > 0,
    }
    for name, contradicts in told.items():
        if contradicts:
            raise ConfigError(
                f"{name} for an ONNX file that has this inside",
                expected="a checkpoint, or the file as it is",
                do=f"leave {name} out, or export the ONNX file anew from its checkpoint",
            )


def _names(output: str) -> tuple[str, ...]:
    return ("labels", "logits") if output == "both" else (output,)


def _fits(size: tuple[int, int], hw: tuple[int, int]) -> bool:
    return all(side in (0, asked) for side, asked in zip(hw, size, strict=True))


def _as_images(
    model: onnx.ModelProto, outside: Outside, request: ExportRequest, warnings: list[str]
) -> tuple[onnx.ModelProto, InputSpec, tuple[str, ...]]:
    graph, load = request.graph, request.load
    hw = graph.size or outside.hw
    if 0 in hw:
        raise ConfigError(
            f"{request.checkpoint.name}, whose input has no fixed size, without --size",
            expected="the height and width that the network is to run at",
            do="pass --size, for example --size 512x512",
        )
    batch = (outside.batch,) * 3 if outside.batch else graph.batch
    if graph.resize is None:
        warnings.append("a graph by itself does not say how to resize: stretched")
    spec = InputSpec(
        name="image",
        hw=hw,
        channels=outside.channels,
        channel_order="RGB" if outside.channels == 3 else "as trained",
        mean=(0.0,) * outside.channels,
        std=(1.0,) * outside.channels,
        resize=graph.resize or "stretch",
        batch=batch,
    )
    if outside.form == "images":
        known = normalisation_in_graph(model, outside.channels)
        mean, std = known or (spec.mean, spec.std)
        return with_batch(model, batch), replace(spec, mean=mean, std=std), outside.outputs
    mean, std = checked_normalisation(load.mean, load.std, outside.channels, warnings)
    inner = GraphSpec(input_hw=hw, mean=mean, std=std, output=graph.output, batch=batch)
    wrapped = image_graph_from_planes(model, inner)
    return wrapped, replace(spec, mean=mean, std=std), inner.output_names
