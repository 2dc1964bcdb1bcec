"""scripts/compare_ptq.py without the tools: what counts as INT8, the rules, the second scoring."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image as PillowImage

from engines.dataset import Pair
from engines.errors import GateError, GraphError
from tests.small_graphs import block_model, model_from_text

ROOT = Path(__file__).parents[1]

_BEFORE = list(sys.path)
sys.path.insert(0, str(ROOT / "scripts"))
from ptq import jobs  # noqa: E402
from ptq.counting import int8_count  # noqa: E402
from ptq.rows import RICESEG, ROWS  # noqa: E402
from ptq.rules import Limits, checks_from_rows  # noqa: E402
from ptq.scoring import check_same, nearest, plain_agreement, plain_miou  # noqa: E402
from ptq.table import ptq_markdown  # noqa: E402
from ptq.tool_onnxruntime import nodes_left_out  # noqa: E402

sys.path[:] = _BEFORE

# A convolution in INT8, a MatMul whose weight alone is, a product of two activations in INT8.
MIXED = """
<ir_version: 8, opset_import: ["" : 17]>
mixed (float[1, 2, 4, 4] x) => (float[1, 3, 16] weighted, float[1, 16, 16] product)
<float scale = {0.5}, int8 zero = {0}, int64[3] to_rows = {1, 4, 16}, float[3] bias = {1, 2, 3}>
{
  xq = QuantizeLinear (x, scale, zero)
  xd = DequantizeLinear (xq, scale, zero)
  wd = DequantizeLinear (w_int8, scale, zero)
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (xd, wd)
  cq = QuantizeLinear (c, scale, zero)
  cd = DequantizeLinear (cq, scale, zero)
  rows = Reshape (cd, to_rows)
  columns = Transpose <perm = [0, 2, 1]> (rows)
  product = MatMul (columns, rows)
  md = DequantizeLinear (m_int8, scale, zero)
  float_rows = Reshape (c, to_rows)
  weighted = MatMul (md, float_rows)
}
"""


def mixed_model() -> onnx.ModelProto:
    return model_from_text(
        MIXED,
        w_int8=np.ones((4, 2, 3, 3), np.int8),
        m_int8=np.ones((1, 3, 4), np.int8),
    )


def test_int8_is_what_reads_dequantized_values_alone() -> None:
    count = int8_count(mixed_model())
    # Conv: 4 x 4 x 4 outputs of 2 x 3 x 3. Product: 16 x 16 outputs of 4. Weighted: 3 x 16 of 4.
    conv, product, weighted = 64 * 18, 256 * 4, 48 * 4
    assert count.operators == {"Conv": 1, "MatMul": 1}
    assert (count.macs, count.int8_macs) == (conv + product + weighted, conv + product)
    assert (count.weighted_macs, count.int8_weighted_macs) == (conv + weighted, conv)
    assert count.percent == pytest.approx(100 * 2176 / 2368)
    assert count.weighted_percent == pytest.approx(100 * 1152 / 1344)


def test_a_float_graph_has_nothing_in_int8() -> None:
    count = int8_count(fixed_batch(block_model()))
    # Outputs by what each one sums: q k and p v; patch, q, sr, proj, fc1, depthwise, head, seg.
    macs = [
        128 * 12,
        128 * 8,
        32 * 32,
        64 * 8,
        128 * 4,
        128 * 8,
        256 * 8,
        256 * 9,
        128 * 16,
        48 * 8,
    ]
    assert count.macs == sum(macs)
    assert count.weighted_macs == sum(macs) - 64 * 8 - 128 * 4
    assert (count.operators, count.int8_macs, count.int8_weighted_macs) == ({}, 0, 0)


def fixed_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model


@pytest.mark.parametrize(
    ("operator", "macs"),
    [
        # (2 x 5) by (5 x 3), the weight stored as it is used or transposed, and the input.
        ("Gemm (x, w)", 30),
        ("Gemm <transB = 1> (x, v)", 30),
        ("Gemm <transA = 1, transB = 1> (y, v)", 30),
        ("MatMul (x, w)", 30),
    ],
)
def test_gemm_costs_what_the_same_matmul_does(operator: str, macs: int) -> None:
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 5] x, float[5, 2] y) => (float[2, 3] z) {{ z = {operator} }}
    """
    model = model_from_text(text, w=np.ones((5, 3)), v=np.ones((3, 5)))
    assert int8_count(model).weighted_macs == macs


def test_a_transposed_convolution_costs_its_kernel_for_each_input() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 2, 3, 3] x) => (float[1, 5, 6, 6] z)
        { z = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (x, w) }
    """
    model = model_from_text(text, w=np.ones((2, 5, 2, 2)))
    assert int8_count(model).macs == 2 * 3 * 3 * 5 * 2 * 2


@pytest.mark.parametrize(
    ("zero", "counted"),
    [("int8 zero = {0}", 1), ("uint8 zero = {3}", 1), ("int16 zero = {0}", 0)],
)
def test_sixteen_bits_are_not_int8(zero: str, counted: int) -> None:
    text = f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[4] x) => (float[4] z)
        <float scale = {{0.5}}, {zero}>
        {{
          q = QuantizeLinear (x, scale, zero)
          d = DequantizeLinear (q, scale, zero)
          z = Softmax <axis = 0> (d)
        }}
    """
    assert int8_count(model_from_text(text)).operators == ({"Softmax": 1} if counted else {})


def test_an_addition_of_a_float_constant_is_not_int8() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x) => (float[4] z)
        <float scale = {0.5}, int8 zero = {0}, float[4] bias = {1, 2, 3, 4}>
        {
          q = QuantizeLinear (x, scale, zero)
          d = DequantizeLinear (q, scale, zero)
          z = Add (d, bias)
        }
    """
    assert int8_count(model_from_text(text)).operators == {}


def test_an_open_batch_cannot_be_counted() -> None:
    with pytest.raises(GraphError, match="no fixed shape of the tensor"):
        int8_count(block_model())


def test_a_graph_whose_shapes_contradict_each_other_cannot_be_counted() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4] x) => (float[1, 3] z) { z = MatMul (x, w) }
    """
    with pytest.raises(GraphError, match="shape inference refuses"):
        int8_count(model_from_text(text, w=np.ones((5, 3))))


def test_the_hand_made_list_has_the_layers_that_our_default_leaves_out() -> None:
    assert nodes_left_out(block_model()) == [
        "/attn/QK",
        "/attn/AV",
        "/ffn/dw/Conv",
        "/patch/Conv",
        "/seg/Conv",
    ]


LIMITS = Limits(max_drop=0.3, min_agreement=99.5)
FP32: dict[str, Any] = {"macs": 100, "weighted_macs": 90, "miou": 80.0, "build": None}


def row(tool: str = RICESEG, **fields: Any) -> dict[str, Any]:
    return {
        "tool": tool,
        "title": "벼",
        "ours": tool == RICESEG,
        "judged": tool == RICESEG,
        "error": None,
        "miou": 79.9,
        "drop": 0.1,
        "agreement": 99.8,
        "int8_percent": 95.0,
        "int8_weighted_percent": 100.0,
        "int8_operators": {"Conv": 3, "Gemm": 2, "MatMul": 1, "Add": 4},
        "macs": 100,
        "weighted_macs": 90,
        "build": {"built": True, "seconds": 1.25, "errors": []},
        "quantize_s": 4.4,
        "peak_mb": 321.0,
        **fields,
    }


def broken(*rows: dict[str, Any]) -> list[str]:
    return [check.text for check in checks_from_rows(rows, FP32, LIMITS) if not check.passed]


def test_rows_on_their_limits_break_no_rule() -> None:
    ours = row(drop=0.3, agreement=99.5, int8_weighted_percent=90.0)
    assert broken(ours, row("other", agreement=99.4, int8_weighted_percent=90.0)) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"drop": 0.301}, "drop of 0.301 points, at most 0.3"),
        ({"drop": float("nan")}, "drop of nan points"),
        ({"agreement": 99.499}, "agreement of 99.499 %, at least 99.5 %"),
        ({"agreement": float("nan")}, "agreement of nan %"),
        ({"int8_weighted_percent": 89.9}, "89.9 % of Conv and Linear in INT8, at least 90 %"),
        ({"build": {"built": False}}, "builds with TensorRT-RTX"),
        ({"error": "exit code 1: no memory"}, "exit code 1: no memory"),
        ({"macs": 99}, "other multiply-accumulates than FP32"),
        ({"weighted_macs": 89}, "other multiply-accumulates than FP32"),
    ],
)
def test_a_row_of_ours_beyond_a_limit_is_named(fields: dict[str, Any], said: str) -> None:
    (text,) = broken(row(**fields))
    assert said in text


@pytest.mark.parametrize(
    ("rival", "said"),
    [
        ({"agreement": 99.8}, "more than other, 벼 on 99.800 %"),
        ({"agreement": float("nan")}, "more than other, 벼 on nan %"),
        ({"agreement": 50.0, "int8_percent": 95.1}, "no judged row of ours with as large a share"),
        ({"error": "exit code 9"}, "not compared, exit code 9"),
    ],
)
def test_a_rival_that_is_not_beaten_breaks_the_rule(rival: dict[str, Any], said: str) -> None:
    (text,) = broken(row(), row("other", **rival))
    assert said in text


def test_a_rival_is_compared_with_the_nearest_judged_row_alone() -> None:
    small = row(title="small", agreement=99.9, int8_percent=80.0)
    large = row(title="large", agreement=99.6, int8_percent=100.0)
    assert broken(small, large, row("other", agreement=99.55, int8_percent=100.0)) == []
    assert broken(small, large, row("other", agreement=99.7, int8_percent=80.0)) == []
    (text,) = broken(small, large, row("other", agreement=99.7, int8_percent=100.0))
    assert text.startswith("riceseg, large agrees on 99.600 %")
    lucky = {**row(title="lucky", agreement=99.99, int8_percent=100.0), "judged": False}
    (text,) = broken(large, lucky, row("other", agreement=99.7, int8_percent=100.0))
    assert text.startswith("riceseg, large agrees on 99.600 %")


def test_two_rows_are_judged_one_for_each_share() -> None:
    judged = [row.options.get("exclude_kinds") for row in ROWS if row.is_judged]
    assert judged == [None, ["residual"]]


def test_scores_are_counted_again_without_our_scorer(tmp_path: Path) -> None:
    # Every label covers 2x2 pixels of the mask, whose last one is ignored.
    mask = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 255]], np.uint8)
    PillowImage.fromarray(mask).save(tmp_path / "벼.png")
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    pairs = [Pair(tmp_path / "벼.jpg", tmp_path / "벼.png")]
    # Class 0: right 3 + 3, either 10 + 0 + 1. Class 1: right 4, either 5 + 4.
    assert plain_miou([labels], pairs, 2) == pytest.approx(100 * (6 / 11 + 4 / 9) / 2)
    # A class that is nowhere does not count.
    assert plain_miou([labels], pairs, 3) == pytest.approx(100 * (6 / 11 + 4 / 9) / 2)
    assert plain_agreement([labels, labels], [labels, 1 - labels]) == 50.0


def test_labels_come_to_the_masks_size_by_the_nearest_centre() -> None:
    # Centres 0.4, 1.2, 2.0, 2.8, 3.6 of 4 pixels; 2.0 is the edge of the pixel 2.
    assert nearest(4, 5) == [0, 1, 2, 2, 3]
    assert nearest(4, 2) == [1, 3]


def test_two_scores_that_differ_stop_the_comparison() -> None:
    check_same("same", (80.0, 99.0), (80.0, 99.0 + 1e-12))
    with pytest.raises(GateError, match="counted again"):
        check_same("other", (80.0, 99.0), (80.0, 99.001))


def test_what_failed_and_what_was_refused_stays_in_the_table() -> None:
    network = {
        "checkpoint": {"file": "벼.pth"},
        "input_hw": [256, 320],
        "calibration": {"images": 32},
        "validation": {"images": 80},
        "fp32": FP32,
        "rows": [
            row(),
            row("refused", build={"built": False, "seconds": 0.1, "errors": ["no"]}),
            row("failed", error="exit code 1: a | b"),
        ],
    }
    lines = ptq_markdown({"networks": [network], "skipped": ["콩"]}).splitlines()
    assert lines[0] == "벼.pth, 256x320, 32 calibration images, 80 validation images:"
    assert lines[4:] == [
        "| FP32 | 80.00 |  |  |  |  | not tried |  |  |",
        "| riceseg, 벼 | 79.90 | 0.10 | 99.800 % | 3, 3, 4 | 95.0 % / 100.0 % | 1.2 s | 4 s "
        "| 321 MB |",
        "| refused, 벼 | 79.90 | 0.10 | 99.800 % | 3, 3, 4 | 95.0 % / 100.0 % | refused | 4 s "
        "| 321 MB |",
        "| failed, 벼 | failed: exit code 1: a \\| b |  |  |  |  | not tried |  |  |",
        "",
        "콩: not measured.",
    ]


def test_a_tool_that_fails_is_a_result_without_local_paths(tmp_path: Path) -> None:
    code = f"import sys; sys.exit('no file {tmp_path}/벼.onnx')"
    done = jobs.child([sys.executable, "-c", code], tmp_path)
    assert done.result == {}
    assert done.error == "exit code 1: no file /벼.onnx"


def test_every_way_has_a_key_of_its_own_and_a_program() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    assert {row.tool for row in ROWS} == jobs.PROGRAMS.keys()
    assert all((jobs.HERE / program).is_file() for program in jobs.PROGRAMS.values())
