from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import block_model, model_from_text, random_images, saved

from calibration.choose_range import output_errors
from calibration.placement import EVERY_LAYER, QuantizePolicy, placement_from_graph
from calibration.ranges import (
    CANDIDATES,
    CHOOSING_IMAGES,
    calibration_steps,
    ranges_from_images,
)

WITH_PRODUCTS = QuantizePolicy(exclude_kinds=frozenset({"residual"}))

# The image's two channels, the second one 100 times as large, are x, which `middle` reads.
OUTLIERS = """
<ir_version: 8, opset_import: ["" : 17]>
g (uint8[N, 2, 2, 2] image) => (uint8[N, 2, 2] labels)
{
  pixels = Cast <to = 1> (image)
  ["first"] x = MatMul (pixels, spread)
  ["middle"] y = MatMul (x, read)
  ["last"] scores = MatMul (y, narrow)
  best = ArgMax <axis = -1, keepdims = 0> (scores)
  labels = Cast <to = 2> (best)
}
"""

# One source, the image, with two readers; and a product of two activations.
MATRICES = """
<ir_version: 8, opset_import: ["" : 17]>
g (uint8[N, 2, 2, 2] image) => (uint8[N, 2, 2] labels)
{
  x = Cast <to = 1> (image)
  ["a"] a = MatMul (x, w_a)
  ["b"] b = MatMul (x, w_b)
  ["ab"] product = MatMul (a, b)
  ["last"] scores = MatMul (product, w_a)
  best = ArgMax <axis = -1, keepdims = 0> (scores)
  labels = Cast <to = 2> (best)
}
"""

Array = np.ndarray


def _outliers(read: Array) -> onnx.ModelProto:
    return model_from_text(
        OUTLIERS, spread=np.diag([1.0, 100.0]), read=read, narrow=np.ones((1, 1))
    )


# x is 100, 150, 200 and 255 in the first channel, 0, 0, 0 and 25500 in the second.
OUTLIER_IMAGE = np.array([100, 0, 150, 0, 200, 0, 255, 255], np.uint8).reshape(2, 2, 2)


def _on_grid(values: Array, clip: float) -> Array:
    """QuantizeLinear saturates at -128; what is within the clip stays within -127."""
    return np.clip(np.rint(values * 127 / clip), -128, 127) * (clip / 127)


def _weight_on_grid(weight: Array) -> Array:
    """Per output channel of a MatMul."""
    return np.stack([_on_grid(column, np.abs(column).max()) for column in weight.T], axis=1)


def _share(found: Array, expected: Array) -> float:
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


def test_an_outlier_that_no_weight_reads_makes_the_tight_clip_the_better_one() -> None:
    model = _outliers(np.array([[1.0], [0.0]]))
    placed = placement_from_graph(model, QuantizePolicy())
    assert [item.node for item in placed] == ["middle"]
    errors = output_errors(model, placed, {"x": (25500.0, 255.0)}, [OUTLIER_IMAGE])["x"]
    # Steps of 25500 / 127 = 200.8 leave 0, 200.8, 200.8 and 200.8 of the first channel.
    energy = 100**2 + 150**2 + 200**2 + 255**2
    coarse = 100**2 + (200.787 - 150) ** 2 + 0.787**2 + (255 - 200.787) ** 2
    assert errors[0] == pytest.approx(coarse / energy, rel=1e-3)
    # Steps of 2.008 are at most 1.004 off, and 255 is on the grid.
    assert 0 < errors[1] < 3 * 1.004**2 / energy


def test_an_outlier_that_a_weight_reads_makes_the_wide_clip_the_better_one() -> None:
    model = _outliers(np.array([[1.0], [1.0]]))
    placed = placement_from_graph(model, QuantizePolicy())
    errors = output_errors(model, placed, {"x": (25500.0, 255.0)}, [OUTLIER_IMAGE])["x"]
    assert errors[0] < 1e-4
    assert errors[1] > 0.9


@pytest.mark.parametrize(
    ("read", "winner"), [([[1.0], [0.0]], "percentile"), ([[1.0], [1.0]], "mse")]
)
def test_auto_takes_the_clip_that_suits_the_weights(
    read: list[list[float]], winner: str, tmp_path: Path
) -> None:
    path = saved(_outliers(np.array(read)), tmp_path)
    # 7 of the 8 values of x are 255 or less; minmax, mse and entropy keep more than that.
    images = [OUTLIER_IMAGE] * 2
    ranges = ranges_from_images(path, images, method="auto", percentile=87.5)
    alone = ranges_from_images(path, images, method=winner, percentile=87.5)  # type: ignore[arg-type]
    assert ranges.chosen == {"x": winner}
    assert ranges.tensors == alone.tensors
    assert (ranges.method, ranges.percentile) == ("auto", 87.5)


@pytest.mark.parametrize(("gain", "winner"), [(0.03, "mse"), (0.10, "percentile")])
def test_another_clip_than_that_of_mse_must_be_worth_it(
    gain: float, winner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def errors(
        model: object, placed: object, clips: dict[str, tuple[float, ...]], *_: object, **__: object
    ) -> dict[str, Array]:
        of_mse, of_percentile, *others = clips["x"]
        assert of_percentile < of_mse
        return {"x": np.array([1.0, 1.0 - gain, *(2.0 for _ in others)])}

    monkeypatch.setattr("calibration.ranges.output_errors", errors)
    path = saved(_outliers(np.array([[1.0], [0.0]])), tmp_path)
    ranges = ranges_from_images(path, [OUTLIER_IMAGE], method="auto", percentile=87.5)
    assert ranges.chosen == {"x": winner}


def test_the_errors_are_those_of_a_computation_in_numpy() -> None:
    rng = np.random.default_rng(5)
    w_a, w_b = rng.normal(0, 1, (2, 2)), rng.normal(0, 1, (2, 2))
    model = model_from_text(MATRICES, w_a=w_a, w_b=w_b)
    placed = placement_from_graph(model, WITH_PRODUCTS)
    assert [item.node for item in placed] == ["a", "b", "ab", "last"]
    image = random_images(1, (2, 2, 2))[0]
    x = image.astype(np.float64)
    a, b = x @ w_a, x @ w_b
    clips = dict.fromkeys(("x", "a", "b", "product"), (20.0, 90.0))
    errors = output_errors(model, placed, clips, [image])
    layers: dict[str, list[tuple[Callable[[Array], Array], Array]]] = {
        "x": [(lambda v: v @ _weight_on_grid(w_a), a), (lambda v: v @ _weight_on_grid(w_b), b)],
        "a": [(lambda v: v @ b, a @ b)],  # the other factor of a product stays as it is
        "b": [(lambda v: a @ v, a @ b)],
        "product": [(lambda v: v @ _weight_on_grid(w_a), a @ b @ w_a)],
    }
    inputs = {"x": x, "a": a, "b": b, "product": a @ b}
    for name, values in inputs.items():
        expected = [
            sum(_share(layer(_on_grid(values, clip)), out) for layer, out in layers[name])
            for clip in clips[name]
        ]
        assert errors[name] == pytest.approx(expected, rel=1e-4)


def test_a_layer_that_writes_zeros_counts_for_nothing() -> None:
    model = _outliers(np.zeros((2, 1)))
    placed = placement_from_graph(model, QuantizePolicy())
    errors = output_errors(model, placed, {"x": (1.0, 2.0)}, [OUTLIER_IMAGE])["x"]
    assert errors.tolist() == [0.0, 0.0]


def test_the_image_is_quantized_and_clips_on_the_grid_cost_only_what_the_weight_does() -> None:
    model = model_from_text(MATRICES, w_a=np.eye(2), w_b=np.eye(2))
    placed = placement_from_graph(model, EVERY_LAYER)[:2]
    image = (random_images(1, (2, 2, 2))[0] // 2).clip(0, 127)  # whole steps of clip 127
    assert output_errors(model, placed, {"x": (127.0,)}, [image])["x"][0] < 1e-12


def test_convolutions_residual_sums_and_moved_tensors_are_measured_too() -> None:
    model = block_model()
    placed = placement_from_graph(model, QuantizePolicy(exclude_kinds=frozenset()))
    sources = {read.source for item in placed for read in item.inputs}
    clips = dict.fromkeys(sources, (1e-3, 1e3))
    steps: list[int] = []
    errors = output_errors(model, placed, clips, random_images(2), on_image=steps.append)
    assert steps == [1, 2]
    assert {item.op_type for item in placed} == {"Conv", "MatMul", "Add"}
    for values in errors.values():
        assert np.isfinite(values).all()
        assert (values > 0).all()


def test_auto_runs_a_few_images_once_more_and_reads_each_once(tmp_path: Path) -> None:
    steps: list[int] = []
    count = CHOOSING_IMAGES + 3
    ranges = ranges_from_images(
        saved(block_model(), tmp_path),
        iter(random_images(count)),
        method="auto",
        policy=WITH_PRODUCTS,
        on_image=steps.append,
    )
    assert ranges.images == count
    assert steps == list(range(1, calibration_steps("auto", count) + 1))
    assert calibration_steps("auto", count) == count + CHOOSING_IMAGES
    assert calibration_steps("auto", 3) == 6
    assert calibration_steps("mse", count) == count
    assert set(ranges.chosen) == set(ranges.tensors)
    assert set(ranges.chosen.values()) <= set(CANDIDATES)


def test_auto_gives_the_same_ranges_twice(tmp_path: Path) -> None:
    path = saved(block_model(), tmp_path)
    first, second = (
        ranges_from_images(path, random_images(CHOOSING_IMAGES + 5), method="auto") for _ in "12"
    )
    assert first == second
