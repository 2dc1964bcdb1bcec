from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from small_graphs import block_model, model_from_text, outputs_of, random_images, saved

from calibration.fp16 import Fp16Record, fp16_onnx_from_onnx
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from engines.errors import GraphError


def _converted(
    model: onnx.ModelProto, folder: Path, *, fp32_nodes: tuple[str, ...] = ()
) -> tuple[onnx.ModelProto, Fp16Record]:
    path = saved(model, folder)
    record = fp16_onnx_from_onnx(path, folder / "fp16.onnx", fp32_nodes=fp32_nodes)
    return onnx.load(str(folder / "fp16.onnx")), record


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, by onnx's strict inference."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def test_every_float_tensor_is_float16_but_the_outputs_and_the_resize_scales(
    tmp_path: Path,
) -> None:
    model, _ = _converted(block_model(), tmp_path)
    float32 = {name for name, kind in _types(model).items() if kind == TensorProto.FLOAT}
    assert float32 == {"logits", "any_roi", "same_size"}


def test_only_the_float_output_is_cast(tmp_path: Path) -> None:
    model, record = _converted(block_model(), tmp_path)
    assert record.casts == 1
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 3  # image, labels, logits
    assert _node(model, "/Cast").attribute[0].i == TensorProto.FLOAT16


def test_layer_normalization_stays_one_node(tmp_path: Path) -> None:
    model, _ = _converted(block_model(), tmp_path)
    node = _node(model, "/norm1")
    assert node.op_type == "LayerNormalization"
    # stash_type, the precision of mean and variance, is float32 where it is not stated.
    assert all(a.name != "stash_type" or a.i == TensorProto.FLOAT for a in node.attribute)


def test_the_answer_is_that_of_the_fp32_graph_within_the_rounding(tmp_path: Path) -> None:
    _converted(block_model(), tmp_path)
    batch = np.stack(random_images(8))
    expected = outputs_of(tmp_path / "model.onnx", batch)
    got = outputs_of(tmp_path / "fp16.onnx", batch)
    assert np.mean(got["labels"] == expected["labels"]) > 0.99
    assert got["logits"].dtype == np.float32
    assert np.abs(got["logits"] - expected["logits"]).max() < 0.01


def test_a_node_held_in_fp32_reads_and_writes_float32_between_casts(tmp_path: Path) -> None:
    model, record = _converted(block_model(), tmp_path, fp32_nodes=("/attn/Softmax", "/ffn/fc1/*"))
    types = _types(model)
    for name in ("/attn/Softmax", "/ffn/fc1/MatMul"):
        node = _node(model, name)
        assert {types[tensor] for tensor in (*node.input, *node.output)} == {TensorProto.FLOAT}
    assert types[_node(model, "/attn/AV").input[0]] == TensorProto.FLOAT16
    assert record.fp32_nodes == ("/attn/Softmax", "/ffn/fc1/MatMul")
    assert record.casts == 1 + 4


def test_no_cast_stands_between_two_nodes_held_in_fp32(tmp_path: Path) -> None:
    model, _ = _converted(block_model(), tmp_path, fp32_nodes=("/attn/QK", "/attn/Softmax"))
    assert _node(model, "/attn/Softmax").input[0] == _node(model, "/attn/QK").output[0]


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="'/nothing', which matches no node"):
        _converted(block_model(), tmp_path, fp32_nodes=("/nothing",))
    assert not (tmp_path / "fp16.onnx").exists()


def _scaled_by(body: str, **constants: np.ndarray) -> onnx.ModelProto:
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (uint8[N, 2, 2, 3] image) => (float[N, 2, 2, 3] logits)
    {{
      x = Cast <to = 1> (image)
      {body}
    }}
    """
    return model_from_text(text, **constants)


def test_constants_beyond_float16_are_clamped_and_recorded(tmp_path: Path) -> None:
    limits = np.array([-1e9, 65504.0, 1e38])
    model, record = _converted(_scaled_by("logits = Min (x, c)", c=limits), tmp_path)
    stored = numpy_helper.to_array(model.graph.initializer[0])
    assert stored.tolist() == [-65504.0, 65504.0, 65504.0]
    assert record.clamped == {"c": 2}


def test_infinities_stay_infinite(tmp_path: Path) -> None:
    model, record = _converted(
        _scaled_by("logits = Min (x, c)", c=np.array([np.inf, 1.0, 2.0])), tmp_path
    )
    assert numpy_helper.to_array(model.graph.initializer[0])[0] == np.inf
    assert record.clamped == {}


@pytest.mark.parametrize("masked", ["-1000000000.0", "-inf"])
def test_an_attention_mask_is_no_overflow(masked: str, tmp_path: Path) -> None:
    values = np.array([0.0, 0.0, float(masked)])
    model = _scaled_by("y = Add (x, c)  logits = Softmax <axis = -1> (y)", c=values)
    _converted(model, tmp_path)
    batch = np.full((1, 2, 2, 3), 200, dtype=np.uint8)
    got = outputs_of(tmp_path / "fp16.onnx", batch)["logits"]
    assert np.array_equal(got[0, 0, 0], [0.5, 0.5, 0.0])


def test_a_factor_is_no_mask(tmp_path: Path) -> None:
    """255 * 0.01 * 1e5; as a mask, of half the range, it would make 8.4e+04 of that."""
    body = "y = Mul (x, small)  z = Mul (y, c)  logits = Div (z, c)"
    model = _scaled_by(body, small=np.array([0.01, 0.0, 0.0]), c=np.array([1e5, 1.0, 1.0]))
    with pytest.raises(GraphError, match=r"first z \(magnitude 2\.\d+e\+05\)"):
        _converted(model, tmp_path)


def test_an_overflow_in_float16_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    model = _scaled_by("y = Mul (x, c)  logits = Sub (y, c)", c=np.array([60000.0, 1.0, 1.0]))
    with pytest.raises(GraphError, match=r"first y \(magnitude 1\.\d+e\+07\).*written by y"):
        _converted(model, tmp_path)
    assert not (tmp_path / "fp16.onnx").exists()
    _converted(model, tmp_path, fp32_nodes=("y", "logits"))


def test_a_constant_read_in_both_types_is_stored_twice(tmp_path: Path) -> None:
    model, _ = _converted(
        _scaled_by("y = Mul (x, c)  logits = Sub (y, c)", c=np.ones(3)),
        tmp_path,
        fp32_nodes=("y",),
    )
    kinds = sorted(tensor.data_type for tensor in model.graph.initializer)
    assert kinds == [TensorProto.FLOAT, TensorProto.FLOAT16]


@pytest.mark.parametrize(
    "body",
    [
        "c = Constant <value = float[3] {1, 2, 3}> ()  logits = Mul (x, c)",
        "c = Constant <value_floats = [1.0, 2.0, 3.0]> ()  logits = Mul (x, c)",
        "c = Constant <value_float = 2.0> ()  logits = Mul (x, c)",
        """n = Constant <value_ints = [3]> ()
        c = ConstantOfShape <value = float[1] {2}> (n)  logits = Mul (x, c)""",
        "n = Constant <value_ints = [3]> ()  c = ConstantOfShape (n)  logits = Mul (x, c)",
        "i = Cast <to = 6> (x)  c = Cast <to = 1> (i)  logits = Mul (x, c)",
        "y, z = TopK <axis = -1> (x, three)  logits = Mul (x, y)",
    ],
)
def test_every_way_to_make_a_float_tensor_is_converted(body: str, tmp_path: Path) -> None:
    model = _scaled_by(body, three=np.array([3]))
    written, _ = _converted(model, tmp_path)
    float32 = {name for name, kind in _types(written).items() if kind == TensorProto.FLOAT}
    assert float32 == {"logits"}
    batch = np.full((1, 2, 2, 3), 5, dtype=np.uint8)
    expected = outputs_of(tmp_path / "model.onnx", batch)["logits"]
    assert np.array_equal(outputs_of(tmp_path / "fp16.onnx", batch)["logits"], expected)


def test_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    model = _scaled_by("y = Relu (x)  logits = Relu (y)")
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(GraphError, match=r"com.example|unknown type"):
        _converted(model, tmp_path)


def _mixed(folder: Path, opset: int) -> onnx.ModelProto:
    """INT8 first, then FP16 for the rest."""
    model = block_model()
    model.opset_import[0].version = opset
    path = saved(model, folder)
    ranges = ranges_from_images(path, random_images(4))
    int8_onnx_from_ranges(path, ranges, folder / "int8.onnx")
    fp16_onnx_from_onnx(folder / "int8.onnx", folder / "mixed.onnx")
    return onnx.load(str(folder / "mixed.onnx"))


@pytest.mark.parametrize("opset", [17, 19])
def test_int8_and_fp16_go_together(opset: int, tmp_path: Path) -> None:
    model = _mixed(tmp_path, opset)
    types = _types(model)
    for name in ("/attn/q/MatMul", "/head/Conv"):
        assert {types[tensor] for tensor in _node(model, name).input} == {TensorProto.FLOAT16}
    batch = np.stack(random_images(8))
    expected = outputs_of(tmp_path / "int8.onnx", batch)["logits"]
    got = outputs_of(tmp_path / "mixed.onnx", batch)["logits"]
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_pairs_take_float32_below_opset_19_and_need_no_cast_from_then_on(tmp_path: Path) -> None:
    for opset, kind in ((17, TensorProto.FLOAT), (19, TensorProto.FLOAT16)):
        model = _mixed(tmp_path, opset)
        types = _types(model)
        pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        assert {types[node.input[1]] for node in pairs} == {kind}


def test_a_scale_too_small_for_float16_stays_positive(tmp_path: Path) -> None:
    model = _scaled_by(
        """q = QuantizeLinear (c, s, zero)  d = DequantizeLinear (q, s, zero)
        logits = Add (x, d)""",
        c=np.zeros(3),
        s=np.array(1e-12),
        zero=np.array(0, dtype=np.int8),
    )
    model.opset_import[0].version = 19
    written, _ = _converted(model, tmp_path)
    scale = next(t for t in written.graph.initializer if t.name.startswith("s"))
    assert numpy_helper.to_array(scale) == np.float16(2.0**-24)
