"""What is checked of every graph with Q/DQ pairs, and that what is written here passes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from small_graphs import block_model, model_from_text, random_images, saved

from calibration.placement import EVERY_LAYER, QuantizePolicy, placement_from_graph
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from calibration.structure import check_pairs
from engines.errors import GraphError

EVERYTHING = QuantizePolicy(exclude_kinds=frozenset())


def _pair_graph(body: str, **constants: np.ndarray) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (uint8[1, 2, 2, 4] image) => (float[1, 2, 2, 4] y)
    {{ x = Cast <to = 1> (image) {body} }}"""
    defaults = {
        "s": np.array(0.1),
        "t": np.array(0.2),
        "z": np.array(0, dtype=np.int8),
        "w": np.eye(4),
        "sw": np.full(4, 0.1),
        "zw": np.zeros(4, dtype=np.int8),
    }
    used = {name: array for name, array in {**defaults, **constants}.items() if name in body}
    return model_from_text(text, **used)


GOOD = """q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
    qw = QuantizeLinear <axis = 1> (w, sw, zw)  dw = DequantizeLinear <axis = 1> (qw, sw, zw)
    y = MatMul (d, dw)"""


def test_a_layer_with_both_pairs_passes() -> None:
    check_pairs(_pair_graph(GOOD))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (GOOD.replace("(q, s, z)", "(q, t, z)"), "without a DequantizeLinear of the same scale"),
        (GOOD.replace("dw = DequantizeLinear <axis = 1>", "dw = DequantizeLinear <axis = 0>"),
         "without a DequantizeLinear of the same scale"),
        (GOOD.replace("(d, dw)", "(x, dw)"), r"DequantizeLinear\) that nothing reads"),
        ("q = QuantizeLinear (x, s, z) y = Identity (x)", "without a DequantizeLinear"),
        (GOOD.replace("axis = 1", "axis = 0"), "4 scales on axis 0"),
        (GOOD.replace("<axis = 1> (w, sw, zw)", "(w, s, z)").replace("sw, zw", "s, z"),
         "1 scales on axis 1; expected one for each of 4 output channels on axis 1"),
        (GOOD.replace("(x, s, z)", "<axis = 3> (x, sw, zw)").replace(
            "(q, s, z)", "<axis = 3> (q, sw, zw)"), "input 0 has a scale per channel"),
        (GOOD.replace("y = MatMul", "m = MatMul") + " y = Add (d, m)", "adds two activations"),
    ],
)  # fmt: skip
def test_a_broken_structure_is_found(body: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        check_pairs(_pair_graph(body))


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"s": np.array(0.0)}, "not positive"),
        ({"s": np.array(-0.1)}, "not positive"),
        ({"s": np.array(np.nan)}, "not positive"),
        ({"s": np.array(np.inf)}, "not positive"),
        ({"z": np.array(3, dtype=np.int8)}, "zero point"),
        ({"z": np.array(0, dtype=np.uint8)}, "zero point of uint8"),
    ],
)
def test_a_pair_that_is_not_symmetric_int8_is_found(
    constants: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        check_pairs(_pair_graph(GOOD, **constants))


def test_a_pair_without_a_zero_point_is_found() -> None:
    with pytest.raises(GraphError, match="without a constant scale and zero point"):
        check_pairs(_pair_graph(GOOD.replace("s, z", "s")))


def test_a_residual_addition_reads_a_pair_only_if_the_policy_says_so(tmp_path: Path) -> None:
    path = saved(block_model(), tmp_path)
    ranges = ranges_from_images(path, random_images(2), policy=EVERYTHING)
    for name, policy in (("all", EVERYTHING), ("layers", EVERY_LAYER)):
        int8_onnx_from_ranges(path, ranges, tmp_path / f"{name}.onnx", policy=policy)
    check_pairs(onnx.load(tmp_path / "layers.onnx"))
    check_pairs(onnx.load(tmp_path / "all.onnx"), residuals=True)
    with pytest.raises(GraphError, match=r"/Add \(Add\) that adds two activations"):
        check_pairs(onnx.load(tmp_path / "all.onnx"))


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A random chain of layers, moves, additions and products on (1, 4, 4, 4) and its transposes.

    Every tensor keeps that shape, so that any two of them can be added or multiplied.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    names = count()
    nodes = [helper.make_node("Cast", ["image"], ["x"], to=onnx.TensorProto.FLOAT)]
    constants: dict[str, np.ndarray] = {}
    tensors = ["x"]

    def add(op: str, *inputs: str, **attributes: object) -> None:
        output = f"t{next(names)}"
        nodes.append(helper.make_node(op, list(inputs), [output], name=f"/{output}", **attributes))
        tensors.append(output)

    def constant(*shape: int) -> str:
        name = f"c{next(names)}"
        constants[name] = rng.normal(0, 0.3, shape).astype(np.float32)
        return name

    for _ in range(draw(st.integers(1, 12))):
        tensor, other = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        op = draw(st.sampled_from(
            ["MatMul", "Conv", "Depthwise", "Add", "Product", "Transpose", "Relu", "Bias"]
        ))  # fmt: skip
        if op == "MatMul":
            add("MatMul", tensor, constant(4, 4))
        elif op == "Conv":
            add("Conv", tensor, constant(4, 4, 1, 1), constant(4), kernel_shape=[1, 1])
        elif op == "Depthwise":
            weight = constant(4, 1, 3, 3)
            add("Conv", tensor, weight, group=4, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif op == "Add":
            add("Add", tensor, other)
        elif op == "Product":
            add("MatMul", tensor, other)
            add("Sigmoid", tensors[-1])  # so that repeated products stay finite
        elif op == "Transpose":
            add("Transpose", tensor, perm=draw(st.permutations(range(1, 4)).map(lambda p: [0, *p])))
        elif op == "Relu":
            add("Relu", tensor)
        else:
            add("Add", tensor, constant(4))
    add("MatMul", tensors[-1], constant(4, 4))
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, 4, 4, 4])],
        [helper.make_tensor_value_info(tensors[-1], onnx.TensorProto.FLOAT, [1, 4, 4, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets)


def _without_pairs(model: onnx.ModelProto) -> list[tuple[str, list[str], list[str]]]:
    """Every other node, reading through the pairs: what the graph computed before."""
    behind = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type.endswith("Linear")}

    def origin(name: str) -> str:
        while name in behind:
            name = behind[name]
        return name

    return [
        (node.op_type, [origin(name) for name in node.input], list(node.output))
        for node in model.graph.node
        if not node.op_type.endswith("Linear")
    ]


def _pairs_read(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """(output, index) of every input, of a layer, that a DequantizeLinear wrote."""
    written = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Conv", "Add"):
            yield from ((node.output[0], i) for i, name in enumerate(node.input) if name in written)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sets(st.sampled_from(["first", "classifier", "depthwise", "product",
                                          "residual"])))  # fmt: skip
def test_any_graph_with_any_policy_is_written_with_sound_pairs(
    model: onnx.ModelProto, excluded: set[str]
) -> None:
    policy = QuantizePolicy(exclude_kinds=frozenset(excluded))  # type: ignore[arg-type]
    try:
        placed = placement_from_graph(model, policy)
    except GraphError as error:
        assert "none of which is to run in it" in str(error)  # noqa: PT017
        return
    with TemporaryDirectory() as folder:
        path = saved(model, Path(folder))
        ranges = ranges_from_images(
            path, random_images(1, (4, 4, 4)), method="minmax", policy=EVERYTHING
        )
        int8_onnx_from_ranges(path, ranges, Path(folder) / "int8.onnx", policy=policy)
        written = onnx.load(Path(folder) / "int8.onnx")
    assert _without_pairs(written) == _without_pairs(model)
    weighted = {(item.output, 1) for item in placed if item.weight is not None}
    direct = {(i.output, r.index) for i in placed for r in i.inputs if r.activation == r.source}
    moved = {(i.output, r.index) for i in placed for r in i.inputs if r.activation != r.source}
    assert weighted | direct <= set(_pairs_read(written)) <= weighted | direct | moved
