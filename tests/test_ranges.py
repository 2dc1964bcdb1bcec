from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_graphs import block_model, model_from_text, random_images, saved

from calibration.ranges import Method, Ranges, TensorRange, ranges_from_images
from calibration.ranges_json import ranges_from_json, ranges_to_json
from engines.errors import BundleError, ConfigError, DatasetError, GraphError, InputError

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse", "auto")
SOURCES = {"normed", "mixed", "sum", "halved"}
WRITTEN = {"q", "reduced", "projected", "wide", "fused"}

# The image's first channel goes through `body` from x to y, between two layers that stay in float.
SCALAR = """
<ir_version: 8, opset_import: ["" : 17]>
g (uint8[N, 2, 2, 1] image) => (uint8[N, 2, 2] labels)
<float shift = {{100}}>
{{
  pixels = Cast <to = 1> (image)
  ["first"] x = MatMul (pixels, one)
  {body}
  ["middle"] z = MatMul (y, one)
  ["last"] scores = MatMul (z, one)
  best = ArgMax <axis = -1, keepdims = 0> (scores)
  labels = Cast <to = 2> (best)
}}
"""


def _scalar(folder: Path, body: str) -> Path:
    return saved(model_from_text(SCALAR.format(body=body), one=np.ones((1, 1))), folder)


def _image(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(2, 2, 1)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_cover_the_tensors_that_int8_layers_read_and_write(
    method: Method, tmp_path: Path
) -> None:
    ranges = ranges_from_images(saved(block_model(), tmp_path), random_images(3), method=method)
    assert set(ranges.tensors) == SOURCES
    assert set(ranges.implicit) == WRITTEN | {"sr_columns", "sr_map"}
    assert (ranges.method, ranges.images) == (method, 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_extremes_are_those_of_the_activations(method: Method, tmp_path: Path) -> None:
    model, images = block_model(), random_images(4)
    ranges = ranges_from_images(saved(model, tmp_path), images, method=method)
    names = sorted(SOURCES | WRITTEN)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for name, values in zip(names, session.run(names, {"image": np.stack(images)}), strict=True):
        found = {**ranges.tensors, **ranges.implicit}[name]
        assert found.min == pytest.approx(values.min(), rel=1e-5)
        assert found.max == pytest.approx(values.max(), rel=1e-5)
        assert 0 < found.amax <= np.abs(values).max() * 1.00001
        if name in WRITTEN:  # by the largest magnitude, whatever the method
            assert found.amax == pytest.approx(np.abs(values).max(), rel=1e-5)
    # A Transpose and a Reshape move values and leave their range.
    assert ranges.implicit["sr_columns"] == ranges.implicit["sr_map"] == ranges.tensors["normed"]


def test_minmax_takes_the_larger_magnitude_of_all_images(tmp_path: Path) -> None:
    path = _scalar(tmp_path, "y = Sub (x, shift)")
    images = [_image(90, 100, 110, 120), _image(0, 100, 100, 100)]
    ranges = ranges_from_images(path, images, method="minmax")
    assert ranges.tensors["y"] == TensorRange(-100.0, 20.0, 100.0)


def test_the_share_of_outliers_comes_with_the_histogram(tmp_path: Path) -> None:
    path = _scalar(tmp_path, "y = Identity (x)")
    # 99 values of 1 and one of 200: the deviation from 0 is sqrt(40099 / 100) = 20, six are 120.
    images = [_image(1, 1, 1, 1)] * 24 + [_image(1, 1, 1, 200)]
    assert ranges_from_images(path, images, method="mse").tensors["y"].outlier_percent == 1.0
    assert ranges_from_images(path, images, method="minmax").tensors["y"].outlier_percent is None


def test_the_percentile_is_taken_over_all_images_together(tmp_path: Path) -> None:
    path = _scalar(tmp_path, "y = Identity (x)")
    images = [_image(1, 2, 3, 4), _image(5, 6, 7, 200)]
    ranges = ranges_from_images(path, images, method="percentile", percentile=87.5)
    # 7 of 8 values lie at or below 7; the histogram covers 0..256 with 4096 bins.
    assert ranges.tensors["y"].amax == pytest.approx(7.0, abs=256 / 4096)
    assert ranges.percentile == 87.5


def test_images_are_read_one_at_a_time_and_only_once(tmp_path: Path) -> None:
    events: list[str] = []

    def images() -> Iterator[np.ndarray]:
        for index, image in enumerate(random_images(3), start=1):
            events.append(f"read {index}")
            yield image

    ranges_from_images(
        saved(block_model(), tmp_path), images(), on_image=lambda n: events.append(f"done {n}")
    )
    assert events == ["read 1", "done 1", "read 2", "done 2", "read 3", "done 3"]


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_gets_a_small_positive_clip(method: Method, tmp_path: Path) -> None:
    ranges = ranges_from_images(
        _scalar(tmp_path, "y = Sub (x, x)"), [_image(1, 2, 3, 4)], method=method
    )
    assert (ranges.tensors["y"].min, ranges.tensors["y"].max) == (0.0, 0.0)
    assert 0 < ranges.tensors["y"].amax < 0.01


def test_no_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="never calibrates on noise"):
        ranges_from_images(saved(block_model(), tmp_path), iter(()))


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize(
    ("body", "bad"),
    [
        ("d = Sub (x, shift)  y = Sqrt (d)", _image(200, 200, 200, 99)),  # NaN
        ("d = Sub (x, shift)  y = Reciprocal (d)", _image(200, 100, 200, 200)),  # infinity
    ],
)
def test_an_activation_that_is_not_finite_names_the_tensor_and_the_image(
    method: Method, body: str, bad: np.ndarray, tmp_path: Path
) -> None:
    good = _image(101, 150, 200, 255)
    with pytest.raises(GraphError, match="tensor y on calibration image 2"):
        ranges_from_images(_scalar(tmp_path, body), [good, bad, good], method=method)


@pytest.mark.parametrize("image", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_an_image_of_another_shape_or_type_is_an_error(image: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image 1 .*expected shape \(8, 8, 3\), uint8"):
        ranges_from_images(saved(block_model(), tmp_path), [image])


def test_an_unknown_method_and_a_percentile_out_of_range_are_errors(tmp_path: Path) -> None:
    path = saved(block_model(), tmp_path)
    with pytest.raises(ConfigError, match=r"'max'.*minmax, percentile, entropy, mse, auto"):
        ranges_from_images(path, random_images(1), method="max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"percentile of 0.99999"):
        ranges_from_images(path, random_images(1), percentile=0.99999)


def test_a_graph_with_a_float_input_is_refused(tmp_path: Path) -> None:
    model = model_from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 3, 4, 4] x) => (float[1, 3, 4, 4] y) { y = Relu (x) }"""
    )
    with pytest.raises(GraphError, match=r"inputs x \(1, 3, 4, 4\).*one uint8 input"):
        ranges_from_images(saved(model, tmp_path), random_images(1))


def test_a_missing_and_a_damaged_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"no file .*missing.onnx"):
        ranges_from_images(tmp_path / "missing.onnx", random_images(1))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(GraphError, match=r"unreadable as ONNX|not valid ONNX"):
        ranges_from_images(damaged, random_images(1))


RANGES = Ranges(
    "percentile",
    12,
    {"normed": TensorRange(0.0, 255.0, 255.0), "/a/MatMul: 1": TensorRange(-1.5, 0.1, 1.25, 0.5)},
    99.999,
    {"q": TensorRange(-3.0, 2.0, 3.0)},
)


ITEM = {"min": 0, "max": 1, "amax": 1}


def test_ranges_survive_json() -> None:
    assert ranges_from_json(ranges_to_json(RANGES)) == RANGES


def test_the_choice_of_auto_survives_json() -> None:
    chosen: dict[str, Method] = {"normed": "mse", "/a/MatMul: 1": "entropy"}
    ranges = dataclasses.replace(RANGES, method="auto", chosen=chosen)
    assert ranges_from_json(ranges_to_json(ranges)) == ranges


def test_a_ranges_file_of_before_the_choice_and_the_outliers_is_read() -> None:
    record = json.loads(ranges_to_json(RANGES))
    del record["chosen"]
    del record["tensors"]["/a/MatMul: 1"]["outlier_percent"]
    read = ranges_from_json(json.dumps(record))
    assert read.chosen == {}
    assert read.tensors["/a/MatMul: 1"] == TensorRange(-1.5, 0.1, 1.25, None)


def test_a_ranges_file_of_before_the_implicit_ones_is_read() -> None:
    record = json.loads(ranges_to_json(RANGES))
    del record["implicit"]
    assert ranges_from_json(json.dumps(record)) == dataclasses.replace(RANGES, implicit={})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "other"}, "another format"),
        ({"format_version": 2}, "format_version 2"),
        ({"method": "guess"}, "method 'guess'"),
        ({"method": []}, "method"),
        ({"images": 0}, "images 0"),
        ({"images": True}, "images True"),
        ({"tensors": {}}, "no tensors"),
        ({"tensors": {"x": [0, 1, 1]}}, "tensor x without exactly min, max and amax"),
        ({"tensors": {"x": {"min": 0, "max": 1}}}, "tensor x without exactly"),
        ({"tensors": {"x": {"min": 0, "max": 1, "amax": 0}}}, "amax 0"),
        ({"tensors": {"x": {"min": 2, "max": 1, "amax": 1}}}, "min 2"),
        ({"tensors": {"x": {"min": 0, "max": 1, "amax": float("nan")}}}, "x.amax = nan"),
        ({"tensors": {"x": {"min": 0, "max": float("inf"), "amax": 1}}}, "x.max = inf"),
        ({"tensors": {"x": {"min": 0, "max": 10**400, "amax": 1}}}, "x.max = 1000"),
        ({"tensors": {"x": {"min": "0", "max": 1, "amax": 1}}}, "x.min = 0"),
        ({"percentile": "high"}, "percentile = high"),
        ({"tensors": {"x": ITEM | {"outlier_percent": 101}}}, "x.outlier_percent = 101"),
        ({"tensors": {"x": ITEM | {"outlier_percent": "few"}}}, "x.outlier_percent = few"),
        ({"tensors": {"x": ITEM | {"more": 1}}}, "tensor x without exactly"),
        ({"chosen": {"normed": "mse"}}, "chosen .*not one method for each tensor"),
        ({"chosen": ["mse"]}, "chosen .*not one method for each tensor"),
        ({"method": "auto"}, "chosen .*not one method for each tensor"),
        ({"method": "auto", "tensors": {"x": ITEM}, "chosen": {"x": "auto"}}, "chosen.x = auto"),
        ({"method": "auto", "tensors": {"x": ITEM}, "chosen": {"x": []}}, r"chosen.x = \[\]"),
        ({"implicit": ["q"]}, r"implicit \['q'\]"),
        ({"implicit": {"q": {"min": 0, "max": 1, "amax": -1}}}, "tensor q .*amax -1"),
    ],
)
def test_a_ranges_file_that_was_altered_is_refused(change: dict[str, object], match: str) -> None:
    record = json.loads(ranges_to_json(RANGES)) | change
    with pytest.raises(BundleError, match=match):
        ranges_from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_text_that_is_no_ranges_file_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="ranges file"):
        ranges_from_json(text)
