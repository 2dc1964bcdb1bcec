"""Activations near float16's end: which are found, and that none of them is ever float16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from small_graphs import model_from_text, outputs_of, saved

from calibration.float16_risk import (
    LIMIT,
    Float16Risk,
    float16_risks,
    float16_warning,
    fp32_nodes_for,
    layers_among,
)
from calibration.fp16 import fp16_onnx_from_onnx
from calibration.placement import EVERY_LAYER, QuantizePolicy
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from engines.errors import DatasetError, GraphError
from tests.rtx.builder import outcome_of_build

# An image of 200 becomes 2 (low), 12000 (between), 120000 (beyond), 1.2 (back) and 3.2 (logits).
CHAIN = """
<ir_version: 9, opset_import: ["" : 19]>
chain (uint8[N, 2, 2, 3] image) => (float[N, 2, 2, 3] logits)
{
  ["/Cast"] pixels = Cast <to = 1> (image)
  ["/low"] low = MatMul (pixels, w_low)
  ["/between"] between = MatMul (low, w_between)
  ["/beyond"] beyond = MatMul (between, w_beyond)
  ["/back"] back = MatMul (beyond, w_back)
  ["/sum"] logits = Add (back, low)
}
"""
GAINS = {"w_low": 0.01, "w_between": 6000.0, "w_beyond": 10.0, "w_back": 1e-5}
HELD = ("/between", "/beyond", "/back")

# Three equal channels of x have the length 1.73 x and the sum of squares 3 x².
LENGTH = """
<ir_version: 9, opset_import: ["" : 17]>
length (uint8[N, 2, 2, 3] image) => (float[N, 2, 2, 1] logits)
{
  ["/Cast"] pixels = Cast <to = 1> (image)
  ["/length"] length = ReduceL2 <axes = [3], keepdims = 1> (pixels)
  ["/Relu"] logits = Relu (length)
}
"""

# A residual stream that grows beyond float16: every addition reads what the last one wrote.
STREAM = """
<ir_version: 9, opset_import: ["" : 17]>
stream (uint8[N, 2, 2, 3] image) => (float[N, 2, 2, 3] logits)
{
  ["/Cast"] pixels = Cast <to = 1> (image)
  ["/norm1"] normed1 = LayerNormalization <axis = -1> (pixels, gamma, beta)
  ["/fc1"] branch1 = MatMul (normed1, w_1)
  ["/Add1"] stream1 = Add (pixels, branch1)
  ["/norm2"] normed2 = LayerNormalization <axis = -1> (stream1, gamma, beta)
  ["/fc2"] branch2 = MatMul (normed2, w_2)
  ["/Add2"] stream2 = Add (stream1, branch2)
  ["/norm3"] normed3 = LayerNormalization <axis = -1> (stream2, gamma, beta)
  ["/head"] logits = MatMul (normed3, w_3)
}
"""


def _chain(opset: int = 19) -> onnx.ModelProto:
    model = model_from_text(CHAIN, **{name: np.eye(3) * gain for name, gain in GAINS.items()})
    model.opset_import[0].version = opset
    return model


def _stream() -> onnx.ModelProto:
    weights = {"w_1": np.eye(3) * 1000, "w_2": np.eye(3) * 80000, "w_3": np.eye(3)}
    return model_from_text(STREAM, gamma=np.ones(3), beta=np.zeros(3), **weights)


def _flat_images(*values: int) -> list[np.ndarray]:
    return [np.full((2, 2, 3), value, dtype=np.uint8) for value in values]


def _risks(model: onnx.ModelProto, folder: Path, *values: int) -> tuple[Float16Risk, ...]:
    return float16_risks(saved(model, folder), _flat_images(*values))


def _float32(path: Path) -> set[str]:
    """Computed float32 tensors, by onnx's strict inference of the written file."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    values = (*graph.value_info, *graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}


def _casts_to_float16(path: Path) -> set[str]:
    """What is cast to float16."""
    return {
        node.input[0]
        for node in onnx.load(path).graph.node
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16
    }


def _as_int8(path: Path, *values: int) -> Path:
    """Every layer of it in INT8."""
    ranges = ranges_from_images(path, _flat_images(*values), method="minmax", policy=EVERY_LAYER)
    out = path.with_name("int8.onnx")
    int8_onnx_from_ranges(path, ranges, out, policy=EVERY_LAYER)
    return out


# --- what is found --------------------------------------------------------------------------------


def test_what_passes_an_eighth_of_the_range_is_named_with_its_writer_and_readers(
    tmp_path: Path,
) -> None:
    risks = _risks(_chain(), tmp_path, 200)
    assert [(risk.tensor, risk.nodes) for risk in risks] == [
        ("between", ("/between", "/beyond")),
        ("beyond", ("/beyond", "/back")),
    ]
    assert [risk.largest for risk in risks] == pytest.approx([12000, 120000])
    assert fp32_nodes_for(risks) == HELD


@pytest.mark.parametrize(("brightness", "found"), [(136, 1), (137, 2)])
def test_the_limit_is_8188(brightness: int, found: int, tmp_path: Path) -> None:
    """60 times the brightness: 8160 and 8220."""
    assert LIMIT == 8188
    assert len(_risks(_chain(), tmp_path, brightness)) == found


@pytest.mark.parametrize(("brightness", "found"), [(52, 0), (53, 1)])
def test_of_a_length_the_squares_under_the_root_count(
    brightness: int, found: int, tmp_path: Path
) -> None:
    """3 * 52² = 8112 and 3 * 53² = 8427, with 8188 between them; the length itself is below 92."""
    risks = _risks(model_from_text(LENGTH), tmp_path, brightness)
    assert len(risks) == found
    if found:
        assert risks[0].largest == pytest.approx(8427)
        assert fp32_nodes_for(risks) == ("/length", "/Relu")


def test_the_largest_of_all_images_counts_and_so_do_negative_values(tmp_path: Path) -> None:
    model = _chain()
    negative = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32) * -6000, "w_between")
    next(t for t in model.graph.initializer if t.name == "w_between").CopyFrom(negative)
    risks = _risks(model, tmp_path, 10, 200, 20)
    assert [risk.largest for risk in risks] == pytest.approx([12000, 120000])


def test_images_are_read_one_at_a_time(tmp_path: Path) -> None:
    events: list[object] = []

    def images() -> Iterator[np.ndarray]:
        for image in _flat_images(1, 2, 3):
            events.append("read")
            yield image

    float16_risks(saved(_chain(), tmp_path), images(), on_image=events.append)
    assert events == ["read", 1, "read", 2, "read", 3]


def test_without_images_nothing_is_said_about_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no calibration images"):
        _risks(_chain(), tmp_path)


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    model = _chain()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    assert len(_risks(model, tmp_path, 200)) == 2


def test_a_tensor_between_nodes_that_are_float32_anyway_is_not_named(tmp_path: Path) -> None:
    path = saved(_chain(), tmp_path)
    held = float16_risks(path, _flat_images(200), held=("/beyond", "/back"))
    assert [risk.tensor for risk in held] == ["between"]
    assert float16_risks(path, _flat_images(200), held=[n.name for n in _chain().graph.node]) == ()


@pytest.mark.parametrize("masked", [-1e9, -np.inf])
@pytest.mark.parametrize(("gain", "named"), [(1.0, []), (30.0, ["scores", "masked"])])
def test_a_mask_is_no_large_activation_but_a_score_below_it_may_be(
    masked: float, gain: float, named: list[str], tmp_path: Path
) -> None:
    """The scores are 200 or 6000 and -200 or -6000: with half the limit, the mask, beyond it."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (uint8[N, 2, 2, 3] image) => (float[N, 2, 2, 3] logits)
    {
      x = Cast <to = 1> (image)
      scores = MatMul (x, gain)
      masked = Add (scores, mask)
      logits = Softmax <axis = -1> (masked)
    }
    """
    mask = np.array([0.0, 0.0, masked])
    model = model_from_text(text, gain=np.diag([gain, -gain, -gain]), mask=mask)
    limit = LIMIT if gain == 1.0 else 5000.0
    risks = float16_risks(saved(model, tmp_path), _flat_images(200), limit=limit)
    assert [risk.tensor for risk in risks] == named


def test_a_value_that_is_not_finite_is_an_error_that_names_it(tmp_path: Path) -> None:
    model = _scaled("y = Log (x)  logits = Relu (y)")
    with pytest.raises(GraphError, match=r"not finite in tensor y on calibration image 2"):
        _risks(model, tmp_path, 1, 0)


def _scaled(body: str) -> onnx.ModelProto:
    return model_from_text(
        f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (uint8[N, 2, 2, 3] image) => (float[N, 2, 2, 3] logits)
        {{
          x = Cast <to = 1> (image)
          {body}
        }}
        """
    )


def test_the_warning_says_how_many_which_first_and_what_follows(tmp_path: Path) -> None:
    risks = _risks(_chain(), tmp_path, 200)
    assert float16_warning(risks, on="1 image") == (
        "2 activations beyond an eighth of FP16's range on 1 image (first: between, 12000, written "
        "by /between), which keeps 3 nodes in FP32"
    )
    single = (Float16Risk("한\x1b국", 1.5e6, ("/a", "/b")),)
    assert float16_warning(single, on="1 image").endswith(
        "1 activation beyond an eighth of FP16's range on 1 image (first: 한?국, 1.5e+06, written "
        "by /a), which keeps 2 nodes in FP32"
    )


# --- what then stays float32 ----------------------------------------------------------------------


def test_neither_the_tensors_nor_a_copy_of_them_are_float16(tmp_path: Path) -> None:
    path = saved(_chain(), tmp_path)
    nodes = fp32_nodes_for(float16_risks(path, _flat_images(200)))
    record = fp16_onnx_from_onnx(path, tmp_path / "fp16.onnx", fp32_nodes=nodes)
    assert record.fp32_nodes == HELD
    assert _float32(tmp_path / "fp16.onnx") == {
        "low_float32",
        "between",
        "beyond",
        "back",
        "logits",
    }
    assert _casts_to_float16(tmp_path / "fp16.onnx") == {"image", "back"}


def test_with_the_writers_alone_the_value_would_be_cast_to_float16(tmp_path: Path) -> None:
    """Why the readers are held, too."""
    path = saved(_chain(), tmp_path)
    fp16_onnx_from_onnx(path, tmp_path / "fp16.onnx", fp32_nodes=("/between", "/beyond"))
    assert "beyond" in _casts_to_float16(tmp_path / "fp16.onnx")


def test_an_export_that_was_refused_is_possible_and_right(tmp_path: Path) -> None:
    path, half = saved(_chain(), tmp_path), tmp_path / "fp16.onnx"
    with pytest.raises(GraphError, match="beyond float16, first beyond"):
        fp16_onnx_from_onnx(path, half)
    nodes = fp32_nodes_for(float16_risks(path, _flat_images(200)))
    fp16_onnx_from_onnx(path, half, fp32_nodes=nodes)
    # onnx's own evaluator, which computes float16 in float16
    (logits,) = ReferenceEvaluator(onnx.load(half)).run(
        None, {"image": np.full((1, 2, 2, 3), 200, dtype=np.uint8)}
    )
    np.testing.assert_allclose(logits, 3.2, rtol=2e-3)


@pytest.mark.parametrize("opset", [17, 19, 20])
def test_the_pairs_of_these_tensors_are_float32_in_the_graph_with_int8(
    opset: int, tmp_path: Path
) -> None:
    path = saved(_chain(opset), tmp_path)
    nodes = fp32_nodes_for(float16_risks(path, _flat_images(200)))
    mixed = tmp_path / "mixed.onnx"
    fp16_onnx_from_onnx(_as_int8(path, 200), mixed, fp32_nodes=nodes)
    pairs = {
        f"{name}_DequantizeLinear"
        for name in ("low", "between", "beyond", "w_between", "w_beyond", "w_back")
    }
    float32 = _float32(mixed)
    assert {"low_float32", "between", "beyond", "back", "logits"} | pairs <= float32
    # Of the one layer that is not held, the pairs are float16 as far as the operator set has it.
    others = {"pixels_DequantizeLinear", "w_low_DequantizeLinear"}
    assert float32 & others == (others if opset < 19 else set())
    casts = _casts_to_float16(mixed)
    assert {name for name in casts if name.startswith(("between", "beyond"))} == set()
    assert casts == {"image", "back"} | (others if opset < 19 else set())


def test_the_graph_with_int8_gives_the_answer_of_int8(tmp_path: Path) -> None:
    path = saved(_chain(), tmp_path)
    nodes = fp32_nodes_for(float16_risks(path, _flat_images(200)))
    int8, mixed = _as_int8(path, 200), tmp_path / "mixed.onnx"
    with pytest.raises(GraphError, match="beyond float16"):
        fp16_onnx_from_onnx(int8, mixed)
    fp16_onnx_from_onnx(int8, mixed, fp32_nodes=nodes)
    batch = np.full((1, 2, 2, 3), 200, dtype=np.uint8)
    (logits,) = ReferenceEvaluator(onnx.load(mixed)).run(None, {"image": batch})
    np.testing.assert_allclose(logits, outputs_of(int8, batch)["logits"], rtol=4e-3)


def test_their_layers_can_be_kept_out_of_int8(tmp_path: Path) -> None:
    model = _chain()
    path = saved(model, tmp_path)
    ranges = ranges_from_images(path, _flat_images(200), policy=EVERY_LAYER)
    layers = layers_among(model, (*HELD, "/sum", "/Cast"))
    assert layers == (*HELD, "/sum")
    policy = QuantizePolicy(EVERY_LAYER.exclude_kinds, exclude_nodes=layers)
    record = int8_onnx_from_ranges(path, ranges, tmp_path / "int8.onnx", policy=policy)
    assert record.nodes == ("/low",)
    quantized = {
        n.input[0]
        for n in onnx.load(tmp_path / "int8.onnx").graph.node
        if n.op_type == "QuantizeLinear"
    }
    assert quantized == {"pixels", "w_low"}


@pytest.mark.parametrize("rename", ["", "층{1}", "/blocks[{1}]/*"])
def test_names_may_be_absent_or_look_like_patterns(rename: str, tmp_path: Path) -> None:
    model = _chain()
    for index, node in enumerate(model.graph.node):
        node.name = rename.format(node.name, index)
    path = saved(model, tmp_path)
    nodes = fp32_nodes_for(float16_risks(path, _flat_images(200)))
    for source in (path, _as_int8(path, 200)):
        fp16_onnx_from_onnx(source, tmp_path / "fp16.onnx", fp32_nodes=nodes)
        float32, casts = _float32(tmp_path / "fp16.onnx"), _casts_to_float16(tmp_path / "fp16.onnx")
        assert {"between", "beyond", "back"} <= float32
        assert {name for name in casts if name.startswith(("between", "beyond"))} == set()
        assert "low" not in float32


def test_of_a_deep_residual_stream_the_chain_stays_float32_and_the_branches_do_not(
    tmp_path: Path,
) -> None:
    path = saved(_stream(), tmp_path)
    images = [np.random.default_rng(3).integers(0, 256, (2, 2, 3), dtype=np.uint8)]
    risks = float16_risks(path, images)
    assert [risk.tensor for risk in risks] == ["branch2", "stream2"]
    assert fp32_nodes_for(risks) == ("/fc2", "/Add2", "/norm3")
    fp16_onnx_from_onnx(path, tmp_path / "fp16.onnx", fp32_nodes=fp32_nodes_for(risks))
    assert _float32(tmp_path / "fp16.onnx") == {
        "normed2_float32",
        "branch2",
        "stream1_float32",
        "stream2",
        "normed3",
        "logits",
    }
    kinds = [node.op_type for node in onnx.load(tmp_path / "fp16.onnx").graph.node]
    assert kinds.count("LayerNormalization") == 3


def test_a_pair_goes_with_its_readers_and_with_those_in_float16_where_they_differ(
    tmp_path: Path,
) -> None:
    model = model_from_text(
        """
        <ir_version: 9, opset_import: ["" : 19]>
        g (uint8[N, 2, 2, 3] image) => (float[N, 2, 2, 3] logits)
        {
          ["/Cast"] x = Cast <to = 1> (image)
          ["/q"] q = QuantizeLinear (x, s, zero)
          ["/both"] both = DequantizeLinear (q, s, zero)
          ["/held"] a = Relu (both)
          ["/other"] b = Relu (both)
          ["/sum"] c = Add (a, b)
          ["/q2"] q2 = QuantizeLinear (c, s, zero)
          ["/one"] one = DequantizeLinear (q2, s, zero)
          ["/last"] logits = Relu (one)
        }
        """,
        s=np.array(2.0),
        zero=np.array(0, dtype=np.int8),
    )
    fp16_onnx_from_onnx(
        saved(model, tmp_path), tmp_path / "fp16.onnx", fp32_nodes=("/held", "/last")
    )
    expected = {"both_float32", "a", "c_float32", "one", "logits"}
    assert _float32(tmp_path / "fp16.onnx") == expected
    assert _casts_to_float16(tmp_path / "fp16.onnx") == {"image", "a"}


@pytest.mark.parametrize("opset", [17, 19])
def test_tensorrt_rtx_builds_them_in_float32(
    tensorrt_rtx: ModuleType, opset: int, tmp_path: Path
) -> None:
    model = _chain(opset)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    path = saved(model, tmp_path)
    nodes = fp32_nodes_for(float16_risks(path, _flat_images(200)))
    for source in (path, _as_int8(path, 200)):
        fp16_onnx_from_onnx(source, tmp_path / "fp16.onnx", fp32_nodes=nodes)
        outcome = outcome_of_build(tensorrt_rtx, tmp_path / "fp16.onnx")
        assert outcome.errors == []
        assert outcome.plan_bytes > 0
        assert outcome.types["MATRIX_MULTIPLY", "FLOAT"] == len(HELD)
        assert outcome.types["MATRIX_MULTIPLY", "HALF"] == 1
