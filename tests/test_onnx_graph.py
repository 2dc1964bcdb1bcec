"""The traced graph, its simplification, and the comparison with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from calibration.fp16 import fp16_onnx_from_onnx
from engines.errors import ConfigError, GateError, GraphError
from engines.trt.layer_names import module_path
from exporter.architectures.segformer import Segformer
from exporter.onnx_graph import (
    GraphSpec,
    ImageToLabels,
    decomposed_layer_norms,
    onnx_from_model,
)
from exporter.parity import check_parity
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.test_segformer import shape_of

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
NOT_STATIC = {"Shape", "Loop", "If", "NonZero", "Where", "Gather", "Slice", "Expand", "ScatterND"}


def net() -> Segformer:
    torch.manual_seed(1)
    model = Segformer(shape_of()).eval()
    nn.init.normal_(model.decode_head.conv_seg.weight)  # type: ignore
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # equal weights would be merged into one tensor
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def images(count: int, hw: tuple[int, int] = (64, 64)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 256, (count, *hw, 3), dtype=np.uint8)


def exported(tmp_path: Path, spec: GraphSpec) -> Path:
    raw, path = tmp_path / "raw.onnx", tmp_path / "model.onnx"
    onnx_from_model(rewritten_for_export(net()), spec, raw, num_outputs=4)
    simplify_onnx(raw, path, batch=images(spec.batch[1], spec.input_hw))
    return path


def run(path: Path, batch: np.ndarray[Any, Any]) -> list[Any]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": batch})  # type: ignore[no-any-return]


def expected_logits(batch: np.ndarray[Any, Any]) -> torch.Tensor:
    """Written out by the graph contract, apart from the code under test."""
    x = torch.from_numpy(batch).double().permute(0, 3, 1, 2)
    mean, std = torch.tensor(MEAN).double(), torch.tensor(STD).double()
    x = (x - mean[None, :, None, None]) / std[None, :, None, None]
    with torch.no_grad():
        logits = net().double()(x)
    return nn.functional.interpolate(logits, batch.shape[1:3], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("hw", [(64, 64), (96, 160), (70, 101)])
def test_labels_are_the_argmax_of_the_normalised_upsampled_logits(
    tmp_path: Path, hw: tuple[int, int]
) -> None:
    path = exported(tmp_path, GraphSpec(hw, MEAN, STD, output="both"))
    batch = images(1, hw)
    labels, logits = run(path, batch)
    want = expected_logits(batch)
    assert labels.dtype == np.uint8
    assert labels.shape == (1, *hw)
    np.testing.assert_allclose(logits, want.numpy(), atol=1e-4)
    assert np.mean(labels == want.argmax(1).numpy()) > 0.999
    assert len(np.unique(labels)) > 1, "one class everywhere would prove nothing"


@pytest.mark.parametrize(
    ("output", "names"),
    [("labels", ["labels"]), ("logits", ["logits"]), ("both", ["labels", "logits"])],
)
def test_the_outputs_are_the_ones_asked_for(tmp_path: Path, output: str, names: list[str]) -> None:
    model = onnx.load(exported(tmp_path, GraphSpec((64, 64), MEAN, STD, output=output)))
    assert [value.name for value in model.graph.output] == names
    entry = model.graph.input[0]
    assert entry.name == "image"
    assert entry.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in entry.type.tensor_type.shape.dim] == [1, 64, 64, 3]


@pytest.mark.parametrize("batch", [(1, 1, 1), (1, 2, 4)])
def test_the_graph_has_no_operator_that_depends_on_a_shape(
    tmp_path: Path, batch: tuple[int, int, int]
) -> None:
    model = onnx.load(exported(tmp_path, GraphSpec((64, 96), MEAN, STD, batch=batch)))
    assert not NOT_STATIC & {node.op_type for node in model.graph.node}


def test_nothing_but_a_cast_reads_the_uint8_image(tmp_path: Path) -> None:
    model = onnx.load(exported(tmp_path, GraphSpec((64, 64), MEAN, STD)))
    readers = [node.op_type for node in model.graph.node if "image" in node.input]
    assert readers == ["Cast"]


def test_a_free_batch_size_gives_each_images_own_answer(tmp_path: Path) -> None:
    path = exported(tmp_path, GraphSpec((64, 64), MEAN, STD, batch=(1, 2, 4)))
    batch = images(3)
    together = run(path, batch)[0]
    for i in range(3):
        np.testing.assert_array_equal(together[i], run(path, batch[i : i + 1])[0][0])


@pytest.mark.parametrize(("opset", "single_node"), [(16, False), (17, True), (20, True)])
def test_layer_normalisation_is_one_node_from_opset_17_on(
    tmp_path: Path, opset: int, single_node: bool
) -> None:
    path = exported(tmp_path, GraphSpec((64, 64), MEAN, STD, opset=opset))
    model = onnx.load(path)
    kinds = {node.op_type for node in model.graph.node}
    assert ("LayerNormalization" in kinds) == single_node
    assert model.opset_import[0].version == opset


def test_a_layer_norm_that_fell_apart_stays_in_float32_in_the_fp16_graph(tmp_path: Path) -> None:
    path = exported(tmp_path, GraphSpec((64, 64), MEAN, STD, opset=16))
    held = decomposed_layer_norms(net(), onnx.load(path))
    fp16_onnx_from_onnx(path, tmp_path / "half.onnx", fp32_nodes=held)
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "half.onnx"))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    squares = [types[node.output[0]] for node in model.graph.node if node.op_type == "Pow"]
    norms = sum(isinstance(module, nn.LayerNorm) for module in net().modules())
    assert squares == [onnx.TensorProto.FLOAT] * norms
    assert onnx.TensorProto.FLOAT16 in types.values()


def test_from_opset_17_on_no_layer_norm_is_held_in_float32(tmp_path: Path) -> None:
    path = exported(tmp_path, GraphSpec((64, 64), MEAN, STD))
    assert decomposed_layer_norms(net(), onnx.load(path)) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_hw": (0, 64)}, "--size 0x64"),
        ({"input_hw": (64, 9000)}, "from 32 to 8192"),
        ({"output": "masks"}, "labels, logits, both"),
        ({"opset": 12}, "13 to 20"),
        ({"batch": (2, 1, 4)}, "MIN <= OPT <= MAX"),
        ({"batch": (0, 1, 1)}, "MIN:OPT:MAX"),
        ({"batch": (1, 2, 4), "input_hw": (70, 64)}, "multiples of 32"),
    ],
)
def test_an_impossible_graph_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GraphSpec(**({"input_hw": (64, 64), "mean": MEAN, "std": STD} | options))


def test_more_outputs_than_a_uint8_label_can_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 255"):
        onnx_from_model(net(), GraphSpec((64, 64), MEAN, STD), tmp_path / "x.onnx", num_outputs=256)


def test_simplification_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    path = exported(tmp_path, GraphSpec((64, 64), MEAN, STD))
    model = onnx.load(path)
    name = next(t for t in model.graph.initializer if t.name.endswith("conv_seg.weight"))
    broken = onnx.numpy_helper.to_array(name).copy()
    broken[0, 0] = np.nan
    name.CopyFrom(onnx.numpy_helper.from_array(broken, name.name))
    onnx.save(model, path)
    with pytest.raises(GraphError, match=r"NaN or infinite numbers in .*conv_seg\.weight"):
        simplify_onnx(path, tmp_path / "y.onnx", batch=images(1))
    assert not (tmp_path / "y.onnx").exists()


def test_parity_of_a_faithful_graph_is_recorded(tmp_path: Path) -> None:
    spec = GraphSpec((64, 64), MEAN, STD)
    model = onnx.load(exported(tmp_path, spec))
    record = check_parity(ImageToLabels(net(), spec).eval(), model, images(2), on="2 images")
    assert record.images == 2
    assert record.max_difference < 1e-4
    assert record.agreement == pytest.approx(100.0)


def test_parity_names_the_first_node_that_diverges(tmp_path: Path) -> None:
    spec = GraphSpec((64, 64), MEAN, STD)
    model = onnx.load(exported(tmp_path, spec))
    name = "net.backbone.layers.1.1.0.norm2.weight"
    weight = next(t for t in model.graph.initializer if t.name == name)
    changed = onnx.numpy_helper.to_array(weight) * 1.5
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, name))
    with pytest.raises(GateError, match=r"first node that diverges: .*layers\.1\.1\.0/norm2"):
        check_parity(ImageToLabels(net(), spec).eval(), model, images(1), on="1 image")


def test_parity_does_not_accept_nan(tmp_path: Path) -> None:
    spec = GraphSpec((64, 64), MEAN, STD)
    model = onnx.load(exported(tmp_path, spec))
    reference = ImageToLabels(net(), spec).eval()
    with torch.no_grad():
        reference.net.decode_head.conv_seg.bias.fill_(float("nan"))  # type: ignore
    with pytest.raises(GateError, match="does not reproduce PyTorch"):
        check_parity(reference, model, images(1), on="1 image")


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ("/net/backbone/layers.0.1.0/attn/MatMul_1", "net.backbone.layers.0.1.0.attn"),
        ("/net/ffn/layers/layers.4/Conv", "net.ffn.layers.4"),
        ("/Cast", ""),
    ],
)
def test_a_node_name_tells_the_module_it_was_traced_in(node: str, path: str) -> None:
    assert module_path(node) == path
