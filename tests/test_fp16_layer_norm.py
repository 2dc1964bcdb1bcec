"""LayerNorm is one operator in every graph of an export, whose squares so stay in float32."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from torch import nn

from calibration.float16_risk import float16_risks, fp32_nodes_for
from calibration.fp16 import fp16_onnx_from_onnx
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from exporter.onnx_graph import GraphSpec, decomposed_layer_norms, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.tiny_segformer import MEAN, STD, photo, tiny_net

IMAGES = [photo((64, 64), seed) for seed in range(3)]
PIECES = frozenset({"Pow", "ReduceMean", "Sqrt"})  # of a LayerNorm that was taken apart


def _exported(net: nn.Module, folder: Path, opset: int) -> dict[str, Path]:
    """Every graph of an export, by what it is."""
    names = ("traced", "fp32", "fp16", "int8", "int8_fp16")
    files = {name: folder / f"{name}.onnx" for name in names}
    spec = GraphSpec((64, 64), MEAN, STD, opset=opset)
    onnx_from_model(rewritten_for_export(net), spec, files["traced"], num_outputs=6)
    simplify_onnx(files["traced"], files["fp32"], batch=IMAGES[0][None])
    held = decomposed_layer_norms(net, onnx.load(files["fp32"]))
    risks = float16_risks(files["fp32"], IMAGES, held=held)
    held += fp32_nodes_for(risks)
    ranges = ranges_from_images(files["fp32"], IMAGES, method="minmax")
    int8_onnx_from_ranges(files["fp32"], ranges, files["int8"])
    fp16_onnx_from_onnx(files["fp32"], files["fp16"], fp32_nodes=held)
    fp16_onnx_from_onnx(files["int8"], files["int8_fp16"], fp32_nodes=held)
    return files


def _kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("opset", [17, 20])
def test_each_layer_norm_is_one_node_in_every_graph(opset: int, tmp_path: Path) -> None:
    net = tiny_net()
    norms = sum(isinstance(module, nn.LayerNorm) for module in net.modules())
    # a patch embedding and a stage's end have one each, a block two, a spatial reduction one
    assert norms == 4 * 1 + 4 * 1 + 4 * 2 + 3
    for name, path in _exported(net, tmp_path, opset).items():
        kinds = _kinds(path)
        assert kinds.count("LayerNormalization") == norms, name
        assert PIECES.isdisjoint(kinds), name


def test_taken_apart_below_opset_17_its_squares_are_held_and_no_risk(tmp_path: Path) -> None:
    """The squares, as large as they are on a bright photo, are float32 anyway."""
    net = tiny_net()
    embedding = net.get_submodule("backbone.layers.0.0.projection")
    assert isinstance(embedding, nn.Conv2d)
    nn.init.constant_(embedding.weight, 2.0)
    embedding.weight.data[0] = -2.0  # else every channel is the mean, and each difference 0
    files = _exported(net, tmp_path, 16)
    held = decomposed_layer_norms(net, onnx.load(files["fp32"]))
    squares = {node.name for node in onnx.load(files["fp32"]).graph.node if node.op_type == "Pow"}
    assert squares <= set(held)
    found, beside_held = (
        {risk.nodes[0] for risk in float16_risks(files["fp32"], IMAGES, held=nodes)}
        for nodes in ((), held)
    )
    assert found & squares
    assert not beside_held & squares
