from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import block_model, model_from_text, outputs_of, random_images, saved

import calibration.layer_fixes
from calibration.layer_fixes import layer_fixes_from_images
from calibration.layer_rows import matrix_layers
from calibration.onnx_file import session_from_model
from calibration.placement import EVERY_LAYER, QuantizePolicy, placement_from_graph
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import Ranges, TensorRange, ranges_from_images
from engines.errors import ConfigError, DatasetError, GraphError, InputError

RNG = np.random.default_rng(5)


def _shapes_of_layers(layer: str) -> str:
    return f"""<ir_version: 8, opset_import: ["" : 17]>
    g (uint8[2, 6, 6, 4] image) => (float logits)
    <float[4] half = {{0.5, 0.5, 0.5, 0.5}}>
    {{
      pixels = Cast <to = 1> (image)
      planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
      {layer}
    }}"""


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("logits = Conv (planes, w)", (5, 4, 1, 1)),
        ("logits = Conv <pads = [1, 2, 0, 1], strides = [2, 1]> (planes, w)", (3, 4, 3, 2)),
        ("logits = Conv <dilations = [2, 1], group = 2> (planes, w)", (6, 2, 2, 3)),
        ("logits = Conv <group = 4, pads = [1, 1, 1, 1]> (planes, w)", (4, 1, 3, 3)),
        ("logits = MatMul (pixels, w)", (4, 7)),
        ("f = Flatten <axis = 3> (pixels) logits = Gemm <transB = 1> (f, w)", (7, 4)),
        ("f = Flatten <axis = 3> (pixels) logits = Gemm (f, w)", (4, 7)),
    ],
)
def test_the_matrix_times_every_row_is_the_layers_output(
    layer: str, weight: tuple[int, ...]
) -> None:
    model = model_from_text(_shapes_of_layers(layer), w=RNG.normal(size=weight))
    (found,) = matrix_layers(model, placement_from_graph(model, EVERY_LAYER))
    batch = np.stack(random_images(2, (6, 6, 4)))
    tensors = (found.item.activation, "logits")
    values = session_from_model(model, extra_outputs=tensors[:1]).run(tensors, {"image": batch})
    rows = found.rows(values[0], 10_000, np.random.default_rng(0))
    outputs = np.einsum("goi,gpi->pgo", found.matrix, rows)
    expected = values[1].transpose(0, 2, 3, 1) if "Conv" in layer else values[1]
    assert outputs.reshape(expected.shape) == pytest.approx(expected, rel=1e-4, abs=1e-2)
    assert np.array_equal(found.weight_from_matrix(found.matrix.astype(np.float64)), found.weight)


def test_of_many_positions_some_are_looked_at_and_they_are_rows_of_the_layer() -> None:
    model = model_from_text(_shapes_of_layers("logits = MatMul (pixels, w)"), w=np.eye(4))
    (found,) = matrix_layers(model, placement_from_graph(model, EVERY_LAYER))
    pixels = np.stack(random_images(2, (6, 6, 4))).astype(np.float32)
    rows = found.rows(pixels, 20, np.random.default_rng(0))
    assert rows.shape == (1, 20, 4)
    assert {tuple(row) for row in rows[0]} <= {tuple(row) for row in pixels.reshape(-1, 4)}


@pytest.mark.parametrize(
    "layer",
    [
        'logits = Conv <auto_pad = "SAME_UPPER"> (planes, w)',
        "lines = Flatten <axis = 3> (pixels) t = Transpose (lines)"
        " logits = Gemm <transA = 1> (t, w)",
    ],
)
def test_layers_of_unusual_form_get_no_fix(layer: str) -> None:
    weight = np.ones((3, 4, 3, 3)) if "Conv" in layer else np.eye(4)
    model = model_from_text(_shapes_of_layers(layer), w=weight)
    assert matrix_layers(model, placement_from_graph(model, EVERY_LAYER)) == ()


def _fixed(
    folder: Path, policy: QuantizePolicy = EVERY_LAYER, **options: object
) -> tuple[onnx.ModelProto, dict]:
    path = saved(block_model(), folder)
    ranges = ranges_from_images(path, random_images(6), policy=policy)
    fixes = layer_fixes_from_images(path, random_images(6), ranges, policy=policy, **options)
    int8_onnx_from_ranges(path, ranges, folder / "int8.onnx", policy=policy, fixes=fixes)
    return onnx.load(str(folder / "int8.onnx")), fixes


def test_onnx_runtime_quantizes_a_compensated_weight_to_the_very_integers_chosen(
    tmp_path: Path,
) -> None:
    model, fixes = _fixed(tmp_path)
    placed = placement_from_graph(block_model(), EVERY_LAYER)
    assert set(fixes) == {item.output for item in placed}
    writers = {name: node for node in model.graph.node for name in node.output}
    changed = 0
    for item in placed:
        fix = fixes[item.output]
        dequantize = writers[writers[item.output].input[1]]
        session = session_from_model(model, extra_outputs=(dequantize.input[0],))
        (levels,) = session.run([dequantize.input[0]], {"image": np.stack(random_images(1))})
        steps = fix.scales.reshape([-1 if i == item.axis else 1 for i in range(levels.ndim)])
        exact = fix.weight.astype(np.float64) / steps
        assert np.abs(exact - np.rint(exact)).max() < 1e-4
        assert np.array_equal(levels, np.rint(exact))
        assert np.abs(levels.astype(int)).max() <= 127
        weight = next(t for t in block_model().graph.initializer if t.name == item.weight)
        changed += int((levels != np.rint(numpy_helper.to_array(weight) / steps)).sum())
    assert changed > 0


def test_compensated_rounding_is_closer_to_fp32_where_inputs_depend_on_each_other(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(8)
    body = "wide = MatMul (pixels, mix) logits = MatMul (wide, w)"
    mix, weight = rng.normal(size=(4, 32)), rng.normal(size=(32, 8))
    path = saved(model_from_text(_shapes_of_layers(body), mix=mix, w=weight), tmp_path)
    images = random_images(6, (6, 6, 4))
    ranges = ranges_from_images(path, images, method="minmax", policy=EVERY_LAYER)
    policy = QuantizePolicy(exclude_kinds=frozenset({"first"}))
    batch = np.stack(random_images(2, (6, 6, 4)))
    expected, errors = outputs_of(path, batch)["logits"], {}
    for rounding in ("nearest", "compensated"):
        fixes = layer_fixes_from_images(
            path, images, ranges, policy=policy, rounding=rounding, bias_correction=False
        )
        out = tmp_path / f"{rounding}.onnx"
        int8_onnx_from_ranges(path, ranges, out, policy=policy, fixes=fixes)
        errors[rounding] = np.square(outputs_of(out, batch)["logits"] - expected).mean()
    assert errors["compensated"] < 0.8 * errors["nearest"]


BIASED = """
<ir_version: 8, opset_import: ["" : 17]>
g (uint8[1, 2, 2, 2] image) => (float logits)
{
  pixels = Cast <to = 1> (image)
  ["m"] product = MatMul (pixels, w)
  logits = Add (b, product)
}
"""


def test_the_mean_error_of_each_output_is_taken_off_its_bias(tmp_path: Path) -> None:
    # Steps of 2 read 11 as 12 (rint takes 5.5 to the even 6) and 40 as 40. The weights of the
    # first output are whole steps of 1; of the second, 0.6 becomes 1 step and 127 stays.
    weight = np.array([[1.0, 0.6], [127.0, 127.0]])
    path = saved(model_from_text(BIASED, w=weight, b=np.array([5.0, 6.0])), tmp_path)
    image = np.tile(np.array([11, 40], dtype=np.uint8), (2, 2, 1))
    ranges = Ranges("minmax", 1, {"pixels": TensorRange(11, 40, 2 * 127.0)})
    (fix,) = layer_fixes_from_images(
        path, [image], ranges, policy=EVERY_LAYER, rounding="nearest"
    ).values()
    assert fix.weight is None
    assert fix.scales is None
    assert fix.bias_shift == pytest.approx([11 - 12, 0.6 * 11 - 12])
    fixes = {"product": fix}
    int8_onnx_from_ranges(path, ranges, tmp_path / "q.onnx", policy=EVERY_LAYER, fixes=fixes)
    expected = outputs_of(path, image[None])["logits"]
    assert outputs_of(tmp_path / "q.onnx", image[None])["logits"] == pytest.approx(expected)


def test_a_layer_without_a_bias_or_a_place_for_one_keeps_its_mean_error(tmp_path: Path) -> None:
    _, fixes = _fixed(tmp_path, rounding="nearest")
    assert fixes["patches"].bias_shift is not None  # a Conv can be given a bias
    assert fixes["q"].bias_shift is None  # a MatMul that no constant is added to
    assert all(fix.weight is None for fix in fixes.values())


def test_the_mean_of_the_logits_comes_closer_with_bias_correction(tmp_path: Path) -> None:
    batch = np.stack(random_images(6))
    expected = outputs_of(saved(block_model(), tmp_path), batch)["logits"].mean(axis=(0, 2, 3))
    distance = {}
    for shift in (False, True):
        _fixed(tmp_path, rounding="nearest", bias_correction=shift)
        logits = outputs_of(tmp_path / "int8.onnx", batch)["logits"]
        distance[shift] = np.abs(logits.mean(axis=(0, 2, 3)) - expected).sum()
    assert distance[True] < 0.7 * distance[False]


def test_a_layer_with_too_many_inputs_is_rounded_to_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration.layer_fixes, "MAX_INPUTS", 31)
    _, fixes = _fixed(tmp_path)
    weights = {t.name: t for t in block_model().graph.initializer}
    for item in placement_from_graph(block_model(), EVERY_LAYER):
        dims = list(weights[item.weight].dims)
        inputs = dims[0] if len(dims) == 2 else math.prod(dims[1:])
        assert (fixes[item.output].weight is None) == (inputs > 31), item.node


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path = saved(block_model(), tmp_path)
    ranges = ranges_from_images(path, random_images(2))
    with pytest.raises(ConfigError, match="the rounding 'up'"):
        layer_fixes_from_images(path, random_images(1), ranges, rounding="up")  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="no calibration images"):
        layer_fixes_from_images(path, [], ranges)
    with pytest.raises(InputError, match="calibration image 1 with shape"):
        layer_fixes_from_images(path, random_images(1, (4, 4, 3)), ranges)
    with pytest.raises(GraphError, match="ranges without"):
        layer_fixes_from_images(path, random_images(1), Ranges("minmax", 1, {}))


def test_an_activation_that_is_not_finite_names_the_tensor_and_the_image(tmp_path: Path) -> None:
    model = model_from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[1, 2, 2, 2] image) => (float logits)
        { pixels = Cast <to = 1> (image) roots = Log (pixels) logits = MatMul (roots, w) }""",
        w=np.eye(2),
    )
    path = saved(model, tmp_path)
    ranges = Ranges("minmax", 1, {"roots": TensorRange(0, 6, 6)})
    images = [np.full((2, 2, 2), value, dtype=np.uint8) for value in (1, 0)]
    with pytest.raises(GraphError, match="tensor roots on calibration image 2"):
        layer_fixes_from_images(path, images, ranges, policy=EVERY_LAYER)
