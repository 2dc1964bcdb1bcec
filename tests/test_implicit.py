"""What TensorRT's implicit INT8 must know besides the inputs of INT8 layers."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import model_from_text, random_images
from tiny_segformer import MEAN, STD, tiny_net

from calibration.implicit import implicit_tensors
from calibration.placement import DEFAULT_POLICY, placement_from_graph
from calibration.ranges import ranges_from_images
from calibration.trt_cache import calibration_cache_from_ranges
from engines.trt.api import tensorrt_from_module
from engines.trt.constant_scales import constant_scale_lines
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx

# Three layers between two that stay in float; `body` is what follows the middle one, from y to z.
ROW = """
<ir_version: 8, opset_import: ["" : 17]>
row (uint8[N, 2, 2, 4] image) => (uint8[N, 2, 2] labels)
<float half = {{0.5}}>
{{
  pixels = Cast <to = 1> (image)
  ["first"] x = MatMul (pixels, w)
  ["middle"] y = MatMul (x, w)
  {body}
  ["last"] scores = MatMul (z, w)
  best = ArgMax <axis = -1, keepdims = 0> (scores)
  labels = Cast <to = 2> (best)
}}
"""


def row(body: str) -> onnx.ModelProto:
    weights = {"w": np.eye(4), "bias": np.ones(4)}
    return model_from_text(ROW.format(body=body), **weights)


@pytest.mark.parametrize(
    ("body", "measured", "same_as"),
    [
        ("z = Sigmoid (y)", ("y",), {}),
        ("z = Add (y, bias)", ("z",), {"y": "z"}),
        ("z = Add (bias, y)", ("z",), {"y": "z"}),
        ("z = Relu (y)", ("z",), {"y": "z"}),
        ("biased = Add (y, bias)  z = Relu (biased)", ("z",), {"y": "z", "biased": "z"}),
        ("z = Add (y, x)", ("y",), {}),  # a residual sum
        ("biased = Add (y, bias)  z = Add (biased, x)", ("biased",), {"y": "biased"}),
        ("biased = Add (y, bias)  z = Mul (biased, y)", ("y",), {}),  # y is needed by itself
        ("z = Mul (y, half)", ("y",), {}),
    ],
)
def test_the_output_is_taken_after_what_is_fused_into_the_layer(
    body: str, measured: tuple[str, ...], same_as: dict[str, str]
) -> None:
    model = row(body)
    found = implicit_tensors(model, placement_from_graph(model, DEFAULT_POLICY))
    assert (found.measured, found.same_as) == (measured, same_as)


def test_a_tensor_from_one_int8_layer_to_the_next_is_no_further_one() -> None:
    model = row('biased = Add (y, bias)  ["second"] z = MatMul (biased, w)')
    found = implicit_tensors(model, placement_from_graph(model, DEFAULT_POLICY))
    assert (found.measured, found.same_as) == (("z",), {"y": "biased"})


def test_the_cache_names_what_int8_layers_read_and_write_as_tensorrt_does(
    tensorrt_rtx: ModuleType, tmp_path: Path
) -> None:
    """All but the constants of a MatMul, whose names only the parser knows."""
    path = _exported(tmp_path)
    ranges = ranges_from_images(path, random_images(2, (64, 64, 3)), method="minmax")
    lines = calibration_cache_from_ranges(ranges).splitlines()[1:]
    known = {line.rpartition(": ")[0] for line in lines}
    assert len(known) == len(lines)
    int8 = {item.node for item in placement_from_graph(onnx.load(path), DEFAULT_POLICY)}
    layers = _layers(tensorrt_rtx, path)
    assert {layers[name][0] for name in int8} == {"CONVOLUTION", "MATRIX_MULTIPLY"}
    for name in int8:
        _, inputs, (output,) = layers[name]
        biases = [
            outputs
            for layer, (kind, read, outputs) in layers.items()
            if kind == "ELEMENTWISE" and layer.endswith("/Add") and output in read
        ]
        assert {inputs[0], output} <= known
        if layers[name][0] == "MATRIX_MULTIPLY" and biases:
            assert set(biases[0]) <= known
    for name, (kind, _, outputs) in layers.items():
        if kind == "SOFTMAX" or re.search(r"/attn/MatMul$|layers\.\d\.\d\.\d/Add|/Resize", name):
            assert known.isdisjoint(outputs), name


def _exported(folder: Path) -> Path:
    raw, path = folder / "raw.onnx", folder / "model.onnx"
    spec = GraphSpec((64, 64), MEAN, STD)
    onnx_from_model(rewritten_for_export(tiny_net()), spec, raw, num_outputs=6)
    simplify_onnx(raw, path, batch=np.stack(random_images(1, (64, 64, 3))))
    return path


@contextlib.contextmanager
def _parsed(trt: ModuleType, path: Path) -> Iterator[Any]:
    """The network; nothing of it may be kept for longer than the block."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path))
    yield network
    del parser, network, builder
    gc.collect()  # while one of them lives, the next build's logger is ignored


def _layers(trt: ModuleType, path: Path) -> dict[str, tuple[str, list[str], list[str]]]:
    """Layer -> kind, names of its inputs, names of its outputs, as TensorRT's parser makes them."""
    found = {}
    with _parsed(trt, path) as network:
        for layer in map(network.get_layer, range(network.num_layers)):
            inputs = map(layer.get_input, range(layer.num_inputs))
            outputs = map(layer.get_output, range(layer.num_outputs))
            names = [[tensor.name for tensor in side if tensor] for side in (inputs, outputs)]
            found[layer.name] = (layer.type.name, *names)
        del layer, inputs, outputs
    return found


def test_the_build_adds_the_constants_that_the_cache_cannot_name(
    tensorrt_rtx: ModuleType, tmp_path: Path
) -> None:
    """Together every input of every INT8 layer has a scale; those of a MatMul's weight by hand."""
    path = _exported(tmp_path)
    model = onnx.load(path)
    ranges = ranges_from_images(path, random_images(2, (64, 64, 3)), method="minmax")
    with _parsed(tensorrt_rtx, path) as network:
        lines = constant_scale_lines(network, tensorrt_from_module(tensorrt_rtx)).decode()
    scales = dict(line.split(": ") for line in lines.splitlines())
    known = {*scales, *ranges.tensors, *ranges.implicit}
    layers = _layers(tensorrt_rtx, path)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for item in placement_from_graph(model, DEFAULT_POLICY):
        kind, inputs, _ = layers[item.node]
        assert set(inputs) <= known
        if kind == "MATRIX_MULTIPLY":
            scale = np.array(np.abs(weights[item.weight]).max() / 127, ">f4")
            assert scales[inputs[1]] == scale.tobytes().hex()
