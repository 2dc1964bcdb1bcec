"""From a float graph and images to INT8 in one call, and what is kept for smaller policies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.placement import DEFAULT_POLICY, EVERY_LAYER, QuantizePolicy
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import Image, ranges_from_images
from calibration.ranges_json import ranges_from_json, ranges_to_json
from calibration.recipe import (
    Int8Recipe,
    calibrated_from_images,
    int8_onnx_from_calibrated,
    int8_onnx_from_images,
    narrowed,
)
from engines.errors import ConfigError, GraphError
from tests.small_graphs import block_model, model_from_text, outputs_of, random_images, saved

IMAGES = random_images(6)
WITHOUT_SR = QuantizePolicy(EVERY_LAYER.exclude_kinds, ("/attn/sr/Conv",))


class Passes:
    """Images that may be gone through several times; `count` says how often they were."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Iterator[Image]:
        self.count += 1
        return iter(IMAGES)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return saved(block_model(), tmp_path)


def test_the_plain_recipe_is_ranges_and_pairs(graph: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int]] = []
    result = int8_onnx_from_images(
        graph,
        Passes(),
        tmp_path / "a.onnx",
        Int8Recipe(),
        on_step=lambda *step: steps.append(step),
    )
    ranges = ranges_from_images(graph, IMAGES)
    record = int8_onnx_from_ranges(graph, ranges, tmp_path / "b.onnx")
    assert (result.record, result.calibrated.ranges) == (record, ranges)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert steps == [("take ranges", done) for done in range(1, 7)]


def test_every_switch_changes_the_graph_and_leaves_nothing_else_behind(
    graph: Path, tmp_path: Path
) -> None:
    recipes = [
        Int8Recipe(),
        Int8Recipe(method="minmax"),
        Int8Recipe(rounding="compensated"),
        Int8Recipe(bias_correction=True),
    ]
    out = tmp_path / "out"
    out.mkdir()
    written = set()
    for number, recipe in enumerate(recipes):
        int8_onnx_from_images(graph, Passes(), out / f"{number}.onnx", recipe)
        written.add((out / f"{number}.onnx").read_bytes())
        logits = outputs_of(out / f"{number}.onnx", np.stack(IMAGES[:1]))["logits"]
        exact = outputs_of(graph, np.stack(IMAGES[:1]))["logits"]
        assert np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()
    assert len(written) == len(recipes)
    assert {path.name for path in out.iterdir()} == {f"{n}.onnx" for n in range(4)}


def test_what_a_recipe_has_in_common_with_a_known_one_is_not_done_again(
    graph: Path, tmp_path: Path
) -> None:
    def calibrated(recipe: Int8Recipe, images: Passes, **known: object):  # type: ignore[no-untyped-def]
        path = tmp_path / "equalized.onnx"
        return calibrated_from_images(graph, images, recipe, equalized_path=path, **known)  # type: ignore[arg-type]

    first, second, third = Passes(), Passes(), Passes()
    plain = calibrated(Int8Recipe(equalize=True), first)
    fixed = calibrated(Int8Recipe(equalize=True, rounding="compensated"), second, known=plain)
    other = calibrated(Int8Recipe(equalize=True, method="minmax"), third, known=fixed)
    assert (first.count, second.count, third.count) == (2, 1, 1)
    assert fixed.ranges is plain.ranges
    assert other.onnx_path == plain.onnx_path == tmp_path / "equalized.onnx"
    assert other.ranges == ranges_from_images(plain.onnx_path, IMAGES, method="minmax")


@pytest.mark.parametrize("method", ["minmax", "mse", "percentile"])
@pytest.mark.parametrize("policy", [DEFAULT_POLICY, WITHOUT_SR, EVERY_LAYER])
def test_narrowed_is_as_if_calibrated_for_the_smaller_policy(
    method: str, policy: QuantizePolicy, graph: Path, tmp_path: Path
) -> None:
    recipe = Int8Recipe(EVERY_LAYER, method=method)  # type: ignore[arg-type]
    large = calibrated_from_images(graph, Passes(), recipe, equalized_path=tmp_path / "unused")
    small = narrowed(large, policy)
    direct = ranges_from_images(graph, IMAGES, method=method, policy=policy)  # type: ignore[arg-type]
    for name, expected in direct.tensors.items():
        assert small.ranges.tensors[name].amax == pytest.approx(expected.amax, rel=1e-6)
    assert list(small.ranges.tensors) == list(direct.tensors)
    assert {n: r.amax for n, r in small.ranges.implicit.items()} == pytest.approx(
        {n: r.amax for n, r in direct.implicit.items()}
    )
    assert list(small.ranges.implicit) == list(direct.implicit)
    int8_onnx_from_calibrated(small, tmp_path / "small.onnx")
    names = {node.name for node in onnx.load(tmp_path / "small.onnx").graph.node}
    assert any("QuantizeLinear" in name for name in names)


def test_a_policy_that_quantizes_more_cannot_be_narrowed_to(graph: Path, tmp_path: Path) -> None:
    small = calibrated_from_images(
        graph, Passes(), Int8Recipe(), equalized_path=tmp_path / "unused"
    )
    with pytest.raises(GraphError, match="no range of the tensor"):
        narrowed(small, EVERY_LAYER)


def test_the_choice_of_a_tensor_is_found_where_its_range_was_taken(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (uint8[N, 4, 4, 4] image) => (float[N, 4, 4, 4] y)
    {
      pixels = Cast <to = 1> (image)  x = Relu (pixels)  t = Transpose <perm = [0, 3, 1, 2]> (x)
      ["a"] left = Conv <kernel_shape = [1, 1]> (t, wa)
      ["b"] right = Conv <kernel_shape = [1, 1]> (t, wb)  y = Add (left, right)
    }"""
    weight = np.ones((4, 4, 1, 1))
    path = saved(model_from_text(text, wa=weight, wb=2 * weight), tmp_path)
    images = random_images(2, (4, 4, 4))
    large = calibrated_from_images(
        path, lambda: images, Int8Recipe(EVERY_LAYER, method="auto"), equalized_path=tmp_path / "no"
    )
    assert list(large.ranges.chosen) == ["x"]  # both read t through it
    small = narrowed(large, replace(EVERY_LAYER, exclude_nodes=("b",)))
    assert small.ranges.chosen == {"t": large.ranges.chosen["x"]}
    assert ranges_from_json(ranges_to_json(small.ranges)) == small.ranges


@pytest.mark.parametrize("field", ["method", "rounding"])
def test_an_unknown_name_in_a_recipe_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"the {field} 'best'"):
        Int8Recipe(**{field: "best"})  # type: ignore[arg-type]
