from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import block_model, model_from_text, outputs_of, random_images, saved

from calibration.macs import macs_from_model
from calibration.pairs import weight_scales
from calibration.placement import DEFAULT_POLICY, QuantizePolicy
from calibration.quantize import QuantizeRecord, int8_onnx_from_ranges
from calibration.ranges import Ranges, ranges_from_images
from engines.errors import GraphError


def _quantized(
    model: onnx.ModelProto, folder: Path, policy: QuantizePolicy = DEFAULT_POLICY
) -> tuple[onnx.ModelProto, QuantizeRecord, Ranges]:
    path = saved(model, folder)
    ranges = ranges_from_images(path, random_images(4), policy=policy)
    record = int8_onnx_from_ranges(path, ranges, folder / "int8.onnx", policy=policy)
    return onnx.load(str(folder / "int8.onnx")), record, ranges


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _writer(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)


def _constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def test_a_quantized_layer_reads_its_activation_and_its_weight_through_a_pair(
    tmp_path: Path,
) -> None:
    model, _, ranges = _quantized(block_model(), tmp_path)
    for index, source in enumerate(("mixed", "w_proj")):
        dequantize = _writer(model, _node(model, "/attn/proj/MatMul").input[index])
        quantize = _writer(model, dequantize.input[0])
        assert (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
        assert quantize.input[0] == source
        assert quantize.input[1:] == dequantize.input[1:]
        zero_point = _constant(model, quantize.input[2])
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        scale = _constant(model, quantize.input[1])
        assert scale.dtype == np.float32
        if source == "mixed":
            assert scale == pytest.approx(ranges.tensors["mixed"].amax / 127)
        else:
            largest = np.abs(_constant(model, "w_proj")).max(axis=0)
            assert scale == pytest.approx(largest / 127)
            assert [a.i for a in quantize.attribute] == [a.i for a in dequantize.attribute] == [1]


def test_readers_of_one_tensor_share_one_pair_before_the_movers(tmp_path: Path) -> None:
    model, record, _ = _quantized(block_model(), tmp_path)
    shared = _node(model, "/attn/q/MatMul").input[0]
    assert _node(model, "/attn/sr/Transpose").input[0] == shared
    assert _writer(model, _writer(model, shared).input[0]).input[0] == "normed"
    assert (record.activations, record.weights) == (4, 5)


def test_residual_additions_and_attention_products_keep_reading_float(tmp_path: Path) -> None:
    original, (model, _, _) = block_model(), _quantized(block_model(), tmp_path)
    for name in ("/Add", "/attn/QK", "/attn/AV", "/ffn/dw/Conv", "/patch/Conv", "/seg/Conv"):
        assert _node(model, name).input == _node(original, name).input


def test_the_record_counts_what_was_quantized(tmp_path: Path) -> None:
    _, record, _ = _quantized(block_model(), tmp_path)
    assert record.counts == {"MatMul": 3, "Conv": 2}
    assert record.nodes[0] == "/attn/q/MatMul"
    assert record.float_nodes == ("/patch/Conv", "/ffn/dw/Conv", "/seg/Conv")


def test_multiply_accumulates_are_those_counted_by_hand() -> None:
    model = block_model()
    macs = macs_from_model(model)
    assert {
        node.name: macs[node.output[0]] for node in model.graph.node if node.output[0] in macs
    } == {
        "/patch/Conv": 4 * 4 * 8 * 3 * 2 * 2,
        "/attn/q/MatMul": 16 * 8 * 8,
        "/attn/sr/Conv": 2 * 2 * 8 * 8 * 2 * 2,
        "/attn/QK": 16 * 4 * 8,
        "/attn/AV": 16 * 4 * 8,
        "/attn/proj/MatMul": 16 * 8 * 8,
        "/ffn/fc1/MatMul": 16 * 8 * 16,
        "/ffn/dw/Conv": 16 * 16 * 9,
        "/head/Conv": 16 * 16 * 8,
        "/seg/Conv": 16 * 8 * 3,
    }


def test_the_share_of_int8_includes_the_products_of_two_activations(tmp_path: Path) -> None:
    _, record, _ = _quantized(block_model(), tmp_path)
    int8 = 1024 + 1024 + 1024 + 2048 + 2048
    others = 1536 + 512 + 512 + 2304 + 384
    assert record.int8_macs_percent == pytest.approx(100 * int8 / (int8 + others))


@pytest.mark.parametrize("fold_weights", [False, True])
def test_the_answer_is_that_of_the_fp32_graph_within_the_rounding(
    fold_weights: bool, tmp_path: Path
) -> None:
    _quantized(block_model(), tmp_path, replace(DEFAULT_POLICY, fold_weights=fold_weights))
    batch = np.stack(random_images(8))
    expected = outputs_of(tmp_path / "model.onnx", batch)
    got = outputs_of(tmp_path / "int8.onnx", batch)
    assert np.mean(got["labels"] == expected["labels"]) > 0.95
    error = np.abs(got["logits"] - expected["logits"]).max()
    assert 0 < error < 0.05 * np.abs(expected["logits"]).max()


def test_folded_weights_are_int8_and_their_float_copies_are_gone(tmp_path: Path) -> None:
    policy = QuantizePolicy(fold_weights=True)
    model, _, _ = _quantized(block_model(), tmp_path, policy)
    dequantize = _writer(model, _node(model, "/attn/proj/MatMul").input[1])
    stored = _constant(model, dequantize.input[0])
    assert stored.dtype == np.int8
    assert np.array_equal(np.abs(stored.astype(int)).max(axis=0), np.full(8, 127))
    weight = _constant(block_model(), "w_proj")
    step = np.abs(weight).max(axis=0) / 127
    assert np.abs(stored * step - weight).max() <= step.max() / 2 * 1.0001
    assert "w_proj" not in {tensor.name for tensor in model.graph.initializer}


SHARED = """
<ir_version: 8, opset_import: ["" : 17]>
g (uint8[N, 2, 2, 4] image) => (float[N, 2, 2, 4] logits)
{
  pixels = Cast <to = 1> (image)
  x = MatMul (pixels, w_first)
  ["a"] a = MatMul (x, w)
  r = Relu (a)
  ["b"] b = MatMul (r, w)
  ["c"] c = Mul (b, w)
  logits = MatMul (c, w_first)
}
"""


def test_a_weight_of_two_layers_gets_one_pair_and_other_readers_keep_the_float(
    tmp_path: Path,
) -> None:
    text = SHARED.replace("2, 2, 4", "4, 4, 4")
    model = model_from_text(text, w_first=np.eye(4), w=np.eye(4))
    path = saved(model, tmp_path)
    ranges = ranges_from_images(path, random_images(1, (4, 4, 4)))
    record = int8_onnx_from_ranges(path, ranges, tmp_path / "int8.onnx")
    written = onnx.load(str(tmp_path / "int8.onnx"))
    assert record.weights == 1
    assert _node(written, "a").input[1] == _node(written, "b").input[1] != "w"
    assert _node(written, "c").input[1] == "w"


def test_scales_are_per_channel_and_a_channel_of_zeros_takes_the_largest() -> None:
    weight = np.array([[1.27, 0.0], [-2.54, 0.0]], dtype=np.float32)
    assert weight_scales(weight, 1) == pytest.approx([0.02, 0.02])
    assert weight_scales(weight, 0) == pytest.approx([0.01, 0.02])


def test_a_weight_of_zeros_has_positive_scales() -> None:
    scales = weight_scales(np.zeros((4, 3, 1, 1), dtype=np.float32), 0)
    assert scales.shape == (4,)
    assert (scales > 0).all()


def test_a_subnormal_channel_has_a_positive_scale() -> None:
    scales = weight_scales(np.array([[1e-45, 1.0]], dtype=np.float32), 1)
    assert (scales > 0).all()


@pytest.mark.parametrize("fold_weights", [False, True])
def test_a_pruned_layer_quantizes_to_finite_values(fold_weights: bool, tmp_path: Path) -> None:
    model = block_model()
    weight = next(t for t in model.graph.initializer if t.name == "w_head")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((8, 16, 1, 1), np.float32), "w_head"))
    _quantized(model, tmp_path, QuantizePolicy(fold_weights=fold_weights))
    batch = np.stack(random_images(1))
    assert not outputs_of(tmp_path / "int8.onnx", batch)["logits"].any()


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(GraphError, match="a weight that is not finite"):
        weight_scales(np.array([[np.nan, 1.0]], dtype=np.float32), 1)


def test_ranges_of_another_graph_are_refused(tmp_path: Path) -> None:
    path = saved(block_model(), tmp_path)
    ranges = ranges_from_images(path, random_images(1))
    tensors = {name: r for name, r in ranges.tensors.items() if name != "normed"}
    with pytest.raises(GraphError, match="without 1 tensors of this graph, such as normed"):
        int8_onnx_from_ranges(path, replace(ranges, tensors=tensors), tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_opset_12_is_refused(tmp_path: Path) -> None:
    text = SHARED.replace("17", "12").replace("2, 2, 4", "4, 4, 4")
    path = saved(model_from_text(text, w_first=np.eye(4), w=np.eye(4)), tmp_path)
    ranges = ranges_from_images(path, random_images(1, (4, 4, 4)))
    with pytest.raises(GraphError, match=r"opset 12.*13 or newer"):
        int8_onnx_from_ranges(path, ranges, tmp_path / "int8.onnx")


def test_names_that_are_taken_are_not_taken_twice(tmp_path: Path) -> None:
    model = block_model()
    for node in model.graph.node:  # the graph already has a tensor named like a scale
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = "normed_scale" if name == "sum" else name
    model, _, _ = _quantized(model, tmp_path)
    names = [tensor.name for tensor in model.graph.initializer]
    assert Counter(names).most_common(1)[0][1] == 1
    assert "normed_scale" not in names
