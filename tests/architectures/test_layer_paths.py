"""Where quantization-aware training's scales go: each layer of a checkpoint and of its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from engines.trt.layer_names import module_path
from exporter.architectures.description import Architecture
from exporter.detect import ARCHITECTURES
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.qat.scales_applied import scales_by_layer
from exporter.qat.trained_scales import TrainedScales
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.architectures.example import Example
from tests.architectures.test_architectures import EXAMPLES, MEAN, STD, network, pictures

STYLE = "mmsegmentation"
LAYERS = (nn.Linear, nn.Conv2d)
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)


def architecture_of(example: Example) -> Architecture:
    return next(a for a in ARCHITECTURES if example.description["architecture"] == a.NAME)


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in net.named_modules() if isinstance(module, LAYERS)}


@every_example
def test_each_weight_is_at_its_path_in_the_graph_unless_a_rewrite_took_it_apart(
    example: Example, tmp_path: Path
) -> None:
    net = network(example.id)
    rewritten = rewritten_for_export(net, example.hw)
    outputs = example.description["num_outputs"]
    traced, simple = tmp_path / "traced.onnx", tmp_path / "simple.onnx"
    onnx_from_model(rewritten, GraphSpec(example.hw, MEAN, STD), traced, num_outputs=outputs)
    simplify_onnx(traced, simple, batch=pictures(1, example.hw))
    graph = onnx.load(simple).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {
        module_path(node.name).removeprefix("net."): constants[name]
        for node in graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        for name in node.input[:2]
        if name in constants
    }
    kept, unchanged = layers_of(rewritten), 0
    for path, weight in architecture_of(example).layer_weights(net).items():
        if path not in kept:
            continue
        assert path in found, path
        if torch.equal(kept[path].weight, weight):  # type: ignore[arg-type]
            values = weight.numpy().reshape(weight.shape[0], -1)
            in_graph = found[path].reshape(found[path].shape[0], -1)
            assert np.array_equal(in_graph, values) or np.array_equal(in_graph.T, values), path
            unchanged += 1
    assert unchanged >= 1


def values_through(
    net: nn.Module, images: Tensor, layers: dict[str, nn.Module]
) -> dict[str, tuple[Tensor, Tensor]]:
    """All numbers that each layer read and wrote, in every call."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, x, y, path=path: seen.setdefault(path, []).append((x[0], y))  # type: ignore[misc]
        )
        for path, module in layers.items()
    ]
    try:
        with torch.no_grad():
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return {
        path: (
            torch.cat([x.flatten() for x, _ in calls]),
            torch.cat([y.flatten() for _, y in calls]),
        )
        for path, calls in seen.items()
    }


def are_among(values: Tensor, others: Tensor) -> bool:
    """Whether each of `values` is one of `others`: layouts, and what is left out, do not count."""
    ordered = others.sort().values
    above = torch.searchsorted(ordered, values).clamp(max=len(ordered) - 1)
    nearest = torch.minimum(
        (ordered[above] - values).abs(), (ordered[(above - 1).clamp(min=0)] - values).abs()
    )
    return float(nearest.max()) <= 1e-9 * float(others.abs().max())


@every_example
def test_layers_read_and_write_what_those_of_the_checkpoint_do(example: Example) -> None:
    """So that a scale which training found for the one is right for the other."""
    architecture, net = architecture_of(example), network(example.id)
    images = torch.randn(2, 3, *example.hw, dtype=torch.float64)
    try:
        rewritten = rewritten_for_export(net.double(), example.hw)
        before = values_through(net, images, layers_of(net))
    finally:
        net.float()
    after = values_through(rewritten, images, layers_of(rewritten))
    compared = 0
    for module, (read, written) in before.items():
        # torch's own attention calls none of its layers, so that no scale of them is ever trained.
        paths = () if ".attn.out_proj" in module else architecture.layer_paths(module, STYLE)
        for path in paths:
            if path in after:
                assert are_among(after[path][0], read), f"{path} reads something else"
                if architecture.writes_the_same(module, STYLE):
                    assert are_among(after[path][1], written), f"{path} writes something else"
                compared += 1
    assert compared > 3


@every_example
def test_scales_of_a_layer_without_a_place_are_left_out(example: Example) -> None:
    architecture, net = architecture_of(example), network(example.id)
    scales = {path: np.ones(1, np.float32) for path in layers_of(net)}
    moved = scales_by_layer(TrainedScales(scales, scales, scales), STYLE, architecture)
    placed = {f"net.{p}" for path in scales for p in architecture.layer_paths(path, STYLE)}
    assert moved.inputs.keys() == moved.weights.keys() == placed
