from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import block_model, model_from_text

from calibration.layers import Kind, quantizable_nodes, weighted_nodes
from calibration.placement import (
    DEFAULT_POLICY,
    EVERY_LAYER,
    QuantizedNode,
    QuantizePolicy,
    placement_from_graph,
)
from engines.errors import ConfigError, GraphError


def _placed(
    model: onnx.ModelProto, policy: QuantizePolicy = DEFAULT_POLICY
) -> dict[str, QuantizedNode]:
    return {item.node: item for item in placement_from_graph(model, policy)}


def _linear_graph(body: str, **weights: np.ndarray) -> onnx.ModelProto:
    """`body` turns x (N, 4, 2, 8), behind a first layer, into y, before a classifier."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (uint8[N, 4, 2, 8] image) => (float[N, 4, 2, 8] logits)
    <int64[3] flat = {{0, 8, 8}}, int64[4] back = {{0, 4, 2, 8}}, int64[2] rows = {{-1, 8}}>
    {{
      pixels = Cast <to = 1> (image)
      ["first"] raw = MatMul (pixels, w_first)
      x = Relu (raw)
      {body}
      ["last"] logits = MatMul (y, w_last)
    }}
    """
    return model_from_text(text, w_first=np.eye(8), w_last=np.eye(8), **weights)


def test_convolutions_and_linear_layers_are_quantized_and_nothing_else() -> None:
    assert list(_placed(block_model())) == [
        "/attn/q/MatMul",
        "/attn/sr/Conv",
        "/attn/proj/MatMul",
        "/ffn/fc1/MatMul",
        "/head/Conv",
    ]


def test_every_weighted_node_knows_its_kinds() -> None:
    kinds = {item.node: set(item.kinds) for item in weighted_nodes(block_model())}
    assert kinds["/patch/Conv"] == {"conv", "first"}
    assert kinds["/seg/Conv"] == {"conv", "classifier"}
    assert kinds["/ffn/dw/Conv"] == {"conv", "depthwise"}
    assert kinds["/head/Conv"] == {"conv"}
    assert kinds["/attn/q/MatMul"] == {"linear"}
    assert "/attn/QK" not in kinds
    assert "/attn/AV" not in kinds


def test_a_pair_moves_before_transpose_and_reshape_to_the_tensor_that_others_read_too() -> None:
    placed = _placed(block_model())
    assert placed["/attn/sr/Conv"].activation == "sr_map"
    assert placed["/attn/sr/Conv"].source == "normed"
    assert placed["/attn/q/MatMul"].source == "normed"


def test_a_pair_does_not_move_before_a_mover_that_a_float_node_reads_as_well() -> None:
    model = _linear_graph(
        "r = Reshape (x, flat)  a = MatMul (r, w)  b = Add (r, a)  y = Reshape (b, back)",
        w=np.eye(8),
    )
    assert [item.source for item in placement_from_graph(model, DEFAULT_POLICY)] == ["r"]


def test_a_pair_moves_before_a_mover_that_leads_to_quantized_nodes_on_every_branch() -> None:
    model = _linear_graph(
        """r = Reshape (x, flat)  s = Reshape (r, rows)
        a = MatMul (r, w1)  b = Gemm (s, w2)
        c = Reshape (b, flat)  d = Add (a, c)  y = Reshape (d, back)""",
        w1=np.eye(8),
        w2=np.eye(8),
    )
    assert {item.source for item in placement_from_graph(model, DEFAULT_POLICY)} == {"x"}


def test_a_mover_that_is_a_graph_output_keeps_the_pair_behind_it() -> None:
    model = _linear_graph(
        "r = Reshape (x, flat)  a = MatMul (r, w)  y = Reshape (a, back)", w=np.eye(8)
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("r", 1, ["N", 8, 8]))
    assert [item.source for item in placement_from_graph(model, DEFAULT_POLICY)] == ["r"]


@pytest.mark.parametrize(
    ("body", "axis"),
    [
        ("a = MatMul (x, w)  y = Relu (a)", 1),
        ("r = Reshape (x, rows)  a = Gemm (r, w)  y = Reshape (a, back)", 1),
        ("r = Reshape (x, rows)  a = Gemm <transB = 1> (r, w)  y = Reshape (a, back)", 0),
    ],
)
def test_the_weight_axis_is_that_of_the_output_channels(body: str, axis: int) -> None:
    model = _linear_graph(body, w=np.eye(8))
    assert [item.axis for item in placement_from_graph(model, DEFAULT_POLICY)] == [axis]


def test_a_stack_of_matrices_and_a_weight_on_the_left_stay_in_float() -> None:
    model = _linear_graph(
        "a = MatMul (x, stack)  b = MatMul (left, a)  c = MatMul (b, w)  y = Relu (c)",
        stack=np.zeros((4, 8, 8)),
        left=np.eye(2),
        w=np.eye(8),
    )
    assert [item.weight for item in placement_from_graph(model, DEFAULT_POLICY)] == ["w"]


def test_a_weight_in_a_constant_node_counts_as_a_weight() -> None:
    values = ", ".join(["1"] * 64)
    model = _linear_graph(
        f"w = Constant <value = float[8, 8] {{{values}}}> ()  a = MatMul (x, w)  y = Relu (a)"
    )
    assert [item.weight for item in placement_from_graph(model, DEFAULT_POLICY)] == ["w"]


def test_parallel_classifiers_all_stay_in_float() -> None:
    model = _linear_graph(
        "a = MatMul (x, w1)  b = Relu (a)  c = MatMul (b, w2)  d = MatMul (b, w3)  y = Add (c, d)",
        w1=np.eye(8),
        w2=np.eye(8),
        w3=np.eye(8),
    )
    del model.graph.node[-1]  # the last layer: c and d become the classifiers
    model.graph.node[-1].output[0] = "logits"
    assert [item.weight for item in placement_from_graph(model, DEFAULT_POLICY)] == ["w1"]


def test_the_policy_can_include_the_groups_that_the_default_leaves_out() -> None:
    placed = _placed(block_model(), QuantizePolicy(exclude_kinds=frozenset()))
    assert {"/patch/Conv", "/ffn/dw/Conv", "/seg/Conv"} <= set(placed)
    assert placed["/patch/Conv"].source == "pixels"


def test_the_policy_leaves_out_nodes_by_glob() -> None:
    policy = QuantizePolicy(exclude_nodes=("/attn/*",))
    assert list(_placed(block_model(), policy)) == ["/ffn/fc1/MatMul", "/head/Conv"]


def test_a_glob_that_matches_nothing_is_an_error_with_examples() -> None:
    with pytest.raises(GraphError, match=r"'/atn/\*'.*such as /patch/Conv"):
        placement_from_graph(block_model(), QuantizePolicy(exclude_nodes=("/atn/*",)))


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'depth'.*depthwise"):
        QuantizePolicy(exclude_kinds=frozenset({"depth"}))  # type: ignore[arg-type]


def test_nothing_left_to_quantize_is_an_error() -> None:
    with pytest.raises(GraphError, match="none of which is to run in it"):
        placement_from_graph(block_model(), QuantizePolicy(exclude_nodes=("*",)))


def _inputs(model: onnx.ModelProto, *exclude: Kind) -> dict[str, list[tuple[int, str, str]]]:
    policy = QuantizePolicy(exclude_kinds=frozenset(exclude))
    return {
        item.node: [(read.index, read.activation, read.source) for read in item.inputs]
        for item in placement_from_graph(model, policy)
    }


def test_both_sides_of_a_product_and_of_a_residual_addition_are_read_quantized_on_request() -> None:
    placed = _inputs(block_model())
    # k and v are made from `reduced` by moves, and nothing else reads it
    assert placed["/attn/QK"] == [(0, "q", "q"), (1, "k", "reduced")]
    assert placed["/attn/AV"] == [(0, "weights", "weights"), (1, "v", "reduced")]
    assert placed["/Add"] == [(0, "normed", "normed"), (1, "projected", "projected")]


def test_products_and_residual_additions_are_left_alone_unless_asked_for() -> None:
    assert {"/attn/QK", "/attn/AV", "/Add"}.isdisjoint(_placed(block_model()))
    assert {"/attn/QK", "/attn/AV", "/Add"}.isdisjoint(_placed(block_model(), EVERY_LAYER))


def test_a_product_that_reads_one_tensor_twice_reads_it_quantized_twice() -> None:
    model = _linear_graph("a = MatMul (x, w)  y = MatMul (a, a)", w=np.eye(8))
    assert _inputs(model, "residual")["y"] == [(0, "a", "a"), (1, "a", "a")]


def test_the_addition_of_a_constant_is_no_residual_addition() -> None:
    model = _linear_graph("a = MatMul (x, w)  y = Add (a, b)", w=np.eye(8), b=np.ones(8))
    assert [item.node for item in quantizable_nodes(model)] == ["first", "a", "last"]


def test_a_graph_that_is_quantized_already_is_refused() -> None:
    model = _linear_graph(
        """q = QuantizeLinear (x, s)  d = DequantizeLinear (q, s)
        a = MatMul (d, w)  y = Relu (a)""",
        s=np.array(0.1),
        w=np.eye(8),
    )
    with pytest.raises(GraphError, match="quantized already"):
        placement_from_graph(model, DEFAULT_POLICY)
