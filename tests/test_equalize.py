from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_graphs import block_model, model_from_text, outputs_of, random_images, saved

import calibration.equalize
from calibration.equalize import equalized_onnx
from calibration.placement import EVERY_LAYER, QuantizePolicy
from engines.errors import ConfigError, DatasetError, GraphError

# One normalization read by a linear layer and, behind a Transpose and a Reshape, by convolutions,
# a depthwise and a grouped one among them; /wide is read by the depthwise /filter alone.
READERS = """
<ir_version: 8, opset_import: ["" : 17]>
g (uint8[N, 4, 4, 3] image) => (float[N, 4, 16] logits, float[N, 3] means)
<int64[3] to_rows = {0, 16, 8}, int64[4] to_map = {0, 8, 4, 4}, int64[3] to_columns = {0, 4, 16}>
{
  pixels = Cast <to = 1> (image)
  ["/embed"] embedded = MatMul (pixels, w_embed)
  rows = Reshape (embedded, to_rows)
  ["/norm"] normed = LayerNormalization <axis = -1> (rows, gamma, beta)
  ["/linear"] linear = MatMul (normed, w_linear)
  columns = Transpose <perm = [0, 2, 1]> (normed)
  map = Reshape (columns, to_map)
  ["/conv"] conv = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (map, w_conv)
  ["/depthwise"] deep = Conv <kernel_shape = [1, 1], group = 8> (map, w_deep)
  ["/grouped"] grouped = Conv <kernel_shape = [1, 1], group = 2> (map, w_grouped)
  ["/wide"] wide = Conv <kernel_shape = [1, 1]> (map, w_wide, b_wide)
  ["/filter"] filtered = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8>
      (wide, w_filter)
  both = Add (deep, filtered)
  ["/reduce"] reduced = Conv <kernel_shape = [1, 1]> (both, w_reduce)
  some = Add (conv, reduced)
  all = Add (some, grouped)
  flat = Reshape (all, to_columns)
  linear_columns = Transpose <perm = [0, 2, 1]> (linear)
  logits = Add (linear_columns, flat)
  means = ReduceMean <axes = [1, 2], keepdims = 0> (pixels)
}
"""
SHAPES = {
    "w_embed": (3, 8),
    "gamma": (8,),
    "beta": (8,),
    "w_linear": (8, 4),
    "w_conv": (4, 8, 3, 3),
    "w_deep": (8, 1, 1, 1),
    "w_grouped": (4, 4, 1, 1),
    "w_wide": (8, 8, 1, 1),
    "b_wide": (8,),
    "w_filter": (8, 1, 3, 3),
    "w_reduce": (4, 8, 1, 1),
}
HWC = (4, 4, 3)
RNG = np.random.default_rng(4)


def _readers_model(seed: int, *, spread: float = 2.0) -> onnx.ModelProto:
    """spread: standard deviation of the logarithms of the channels' sizes."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    weights["gamma"] = rng.normal(size=8) * np.exp(rng.normal(0, spread, 8))
    return model_from_text(READERS, **weights)


def _in_float64(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    """The logits as the reference implementation of ONNX computes them with 64-bit floats."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in wide.graph.node:
        if node.op_type == "Cast":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", onnx.TensorProto.DOUBLE))
    for value in wide.graph.output:
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return ReferenceEvaluator(wide).run(["logits"], {"image": batch})[0]


def _constant(model: onnx.ModelProto, node: str, index: int) -> np.ndarray:
    name = next(n for n in model.graph.node if n.name == node).input[index]
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0.0, 3.0),
    strength=st.floats(0.0, 1.0),
)
def test_the_equalized_graph_is_the_same_function(
    seed: int, spread: float, strength: float
) -> None:
    model = _readers_model(seed, spread=spread)
    with TemporaryDirectory() as folder:
        path, out = saved(model, Path(folder)), Path(folder) / "equalized.onnx"
        record = equalized_onnx(
            path, random_images(3, HWC), out, policy=EVERY_LAYER, strength=strength
        )
        written = onnx.load(str(out))
    assert record.sources == ("/norm", "/wide")
    batch = np.stack(random_images(4, HWC))
    expected, got = _in_float64(model, batch), _in_float64(written, batch)
    # What is left is the rounding of the stored constants to float32, 2^-24 of each.
    assert np.abs(got - expected).max() < 2e-6 * np.abs(expected).max()
    for node in record.sources:
        assert not np.array_equal(_constant(written, node, 1), _constant(model, node, 1))


def test_the_scales_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    # Two values normalized are +1 and -1, so the channels reach 4 + 0.5 and 1; the largest weights
    # are 2 and 0.5. At strength 0.5 s is sqrt(4.5 / 2) = 1.5 and sqrt(1 / 0.5) = sqrt(2); divided
    # by them the channels reach 3 and 0.71; the largest of these is to stay 4.5, so s is 1 and
    # sqrt(2) / 1.5.
    model = model_from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[1, 1, 1, 2] image) => (float logits)
        {
          pixels = Cast <to = 1> (image)
          ["/norm"] normed = LayerNormalization <axis = 3, epsilon = 0.0> (pixels, gamma, beta)
          ["/m"] logits = MatMul (normed, w)
        }""",
        gamma=np.array([4.0, 1.0]),
        beta=np.array([0.5, 0.0]),
        w=np.array([[2.0, -1.0, 0.0], [0.25, 0.5, -0.5]]),
    )
    image = np.array([[[9, 3]]], dtype=np.uint8)
    out = tmp_path / "equalized.onnx"
    record = equalized_onnx(saved(model, tmp_path), [image], out, policy=EVERY_LAYER)
    written, scales = onnx.load(str(out)), np.array([1.0, np.sqrt(2) / 1.5])
    assert _constant(written, "/norm", 1) == pytest.approx(np.array([4.0, 1.0]) / scales)
    assert _constant(written, "/norm", 2) == pytest.approx(np.array([0.5, 0.0]) / scales)
    expected = np.array([[2.0, -1.0, 0.0], [0.25, 0.5, -0.5]]) * scales[:, None]
    assert _constant(written, "/m", 1) == pytest.approx(expected)
    assert (record.layers, record.images) == (("/m",), 1)
    assert {tensor.name for tensor in written.graph.initializer}.isdisjoint({"gamma", "beta", "w"})


def test_channels_are_of_more_equal_size_and_none_is_larger_than_the_largest_was(
    tmp_path: Path,
) -> None:
    model, out = _readers_model(1), tmp_path / "equalized.onnx"
    equalized_onnx(saved(model, tmp_path), random_images(3, HWC), out, policy=EVERY_LAYER)
    largest = {}
    for name, graph in (("before", model), ("after", onnx.load(str(out)))):
        graph.graph.output.extend(map(helper.make_empty_tensor_value_info, ("normed", "wide")))
        batch = np.stack(random_images(3, HWC))
        normed, wide = ReferenceEvaluator(graph).run(["normed", "wide"], {"image": batch})
        largest[name] = np.abs(normed).max(axis=(0, 1)), np.abs(wide).max(axis=(0, 2, 3))
    (normed, wide), (even_normed, even_wide) = largest["before"], largest["after"]
    assert np.std(np.log(even_normed)) < 0.6 * np.std(np.log(normed))
    assert even_normed.max() == pytest.approx(normed.max(), rel=1e-5)
    # The weights of /filter have a scale for each channel, so nothing is lost by equal channels.
    assert np.std(wide) > 0.2 * wide.max()
    assert even_wide == pytest.approx(np.full(8, wide.max()), rel=1e-5)


def test_a_normalization_that_something_else_reads_stays_as_it_is(tmp_path: Path) -> None:
    model, out = block_model(), tmp_path / "equalized.onnx"  # a residual addition reads /norm1
    record = equalized_onnx(saved(model, tmp_path), random_images(2), out)
    assert record.sources == ()
    written = onnx.load(str(out))
    assert written.graph.node == model.graph.node
    assert written.graph.initializer == model.graph.initializer


ONE_NORM = """<ir_version: 8, opset_import: ["" : 17]>
g (uint8[1, 2, 2, 4] image) => (float logits)
<int64[4] halves = {1, 2, 4, 2}>
{
  pixels = Cast <to = 1> (image)
  ["/norm"] normed = LayerNormalization <axis = -1> (pixels, gamma, beta)
  READERS
}"""


@pytest.mark.parametrize(
    ("readers", "equalized"),
    [
        ("logits = MatMul (normed, w)", True),
        ("m = MatMul (normed, w) r = Relu (normed) logits = Concat <axis = 3> (m, r)", False),
        ("m = MatMul (normed, w) t = Transpose <perm = [0, 1, 3, 2]> (normed)"
         " logits = MatMul (m, t)", False),
        ("m = MatMul (normed, w) l = MatMul (w_left, normed)"
         " logits = Concat <axis = 3> (m, l)", False),
        ("r = Reshape (normed, halves) logits = MatMul (r, w_half)", False),
        ("t = Transpose <perm = [0, 3, 1, 2]> (normed) logits = Conv (t, w_conv)", True),
        ("logits = Conv (normed, w_half_conv)", False),
    ],
)  # fmt: skip
def test_only_what_constant_weights_alone_read_by_channel_is_changed(
    readers: str, equalized: bool, tmp_path: Path
) -> None:
    weights = {
        "w": RNG.normal(size=(4, 4)),
        "w_left": RNG.normal(size=(2, 2)),
        "w_half": RNG.normal(size=(2, 4)),
        "w_conv": RNG.normal(size=(3, 4, 1, 1)),
        "w_half_conv": RNG.normal(size=(3, 2, 1, 1)),
    }
    used = {name: weights[name] for name in weights if re.search(rf"\b{name}\b", readers)}
    affine = {"gamma": RNG.normal(size=4), "beta": RNG.normal(size=4)}
    model = model_from_text(ONE_NORM.replace("READERS", readers), **used, **affine)
    path, out = saved(model, tmp_path), tmp_path / "equalized.onnx"
    images = random_images(1, (2, 2, 4))
    record = equalized_onnx(path, images, out, policy=EVERY_LAYER)
    assert record.sources == (("/norm",) if equalized else ())


def test_a_normalization_over_two_axes_or_that_is_an_output_stays_as_it_is(tmp_path: Path) -> None:
    text = ONE_NORM.replace("READERS", "logits = MatMul (normed, w)")
    for old, new, shape in (
        ("axis = -1", "axis = 2", (2, 4)),
        ("float logits", "float logits, float[1, 2, 2, 4] normed", (4,)),
    ):
        model = model_from_text(
            text.replace(old, new), gamma=np.ones(shape), beta=np.zeros(shape), w=np.eye(4)
        )
        path, out = saved(model, tmp_path), tmp_path / "equalized.onnx"
        images = random_images(1, (2, 2, 4))
        assert equalized_onnx(path, images, out, policy=EVERY_LAYER).sources == ()


def test_a_normalization_that_only_float_layers_read_stays_as_it_is(tmp_path: Path) -> None:
    names = ("/linear", "/conv", "/depthwise", "/grouped", "/wide")
    policy = QuantizePolicy(exclude_kinds=frozenset(), exclude_nodes=(*names, "/filter"))
    path, out = saved(_readers_model(2), tmp_path), tmp_path / "equalized.onnx"
    assert equalized_onnx(path, random_images(1, HWC), out, policy=policy).sources == ()
    policy = QuantizePolicy(exclude_kinds=frozenset(), exclude_nodes=(*names[1:], "/filter"))
    record = equalized_onnx(path, random_images(1, HWC), out, policy=policy)
    assert record.layers == names  # those in float take the scales as well


def test_other_readers_of_the_constants_keep_them(tmp_path: Path) -> None:
    text = READERS.replace(
        "means = ReduceMean", "again = Mul (w_linear, w_linear) means = ReduceMean"
    )
    model = model_from_text(
        text.replace("float[N, 3] means)", "float[N, 3] means, float[8, 4] again)"),
        **{name: RNG.normal(size=shape) for name, shape in SHAPES.items()},
    )
    path, out = saved(model, tmp_path), tmp_path / "equalized.onnx"
    equalized_onnx(path, random_images(2, HWC), out, policy=EVERY_LAYER)
    batch = np.stack(random_images(2, HWC))
    expected, got = outputs_of(path, batch), outputs_of(out, batch)
    assert np.array_equal(got["again"], expected["again"])
    assert got["logits"] == pytest.approx(expected["logits"], rel=1e-4, abs=1e-4)


def test_silent_channels_keep_their_scale(tmp_path: Path) -> None:
    weights = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
    weights["gamma"][2] = weights["beta"][2] = 0
    for name, place in (
        ("w_linear", (5,)),
        ("w_conv", (slice(None), 5)),
        ("w_deep", (5,)),
        ("w_grouped", (slice(2, 4), 1)),
        ("w_wide", (slice(None), 5)),
    ):
        weights[name][place] = 0
    out = tmp_path / "equalized.onnx"
    path = saved(model_from_text(READERS, **weights), tmp_path)
    equalized_onnx(path, random_images(2, HWC), out, policy=EVERY_LAYER)
    written = onnx.load(str(out))
    before, after = weights["gamma"].astype(np.float32), _constant(written, "/norm", 1)
    assert (after[2], after[5]) == (0, before[5])
    assert np.isfinite(after).all()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path, out = saved(_readers_model(3), tmp_path), tmp_path / "equalized.onnx"
    with pytest.raises(ConfigError, match=r"a strength of 1\.5"):
        equalized_onnx(path, random_images(1, HWC), out, strength=1.5)
    with pytest.raises(DatasetError, match="no calibration images"):
        equalized_onnx(path, [], out, policy=EVERY_LAYER)
    assert not out.exists()


def test_another_function_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = saved(_readers_model(3), tmp_path), tmp_path / "equalized.onnx"
    replace = calibration.equalize._Edit._replace
    monkeypatch.setattr(
        calibration.equalize._Edit,
        "_replace",
        lambda edit, node, index, values: (
            replace(edit, node, index, values) if node.op_type == "LayerNormalization" else None
        ),
    )
    with pytest.raises(GraphError, match="an equalized graph whose logits differ"):
        equalized_onnx(path, random_images(1, HWC), out, policy=EVERY_LAYER)
    assert not out.exists()
