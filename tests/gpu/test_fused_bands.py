"""Engines that compose bands on this GPU give the labels of the images that are composed before."""

from __future__ import annotations

import numpy as np
import pytest

from engines.bands.composite import composite_from_bands
from engines.bundle import bundle_from_folder
from engines.segmenter import Segmenter
from tests.conftest import skip_or_fail


@pytest.fixture(scope="module")
def recipe(bundles):
    bands = bundle_from_folder(bundles / "fixed").bands
    if bands is None or bands.fused_hw is None:
        skip_or_fail("the bundles were made without --fuse-bands")
    return bands.recipe


@pytest.fixture(scope="module")
def scenes(images):
    """Photos as reflectances, each darker than the last, with nodata, NaN and negative values."""
    scenes = images[:4].astype(np.float32) / 300
    scenes /= np.arange(1, len(scenes) + 1, dtype=np.float32).reshape(-1, 1, 1, 1)
    scenes[:, :20] = -10000
    scenes[:, 20:25, :50] = np.nan
    scenes[:, 25:30, :50] = -0.001
    return scenes


@pytest.mark.parametrize(("precision", "least"), [("fp32", 99.99), ("fp16", 99.9), ("int8", 99.0)])
@pytest.mark.parametrize("bundle", ["fixed", "free"])
def test_labels_are_those_of_the_composed_image(opened, recipe, scenes, bundle, precision, least):
    composed = np.stack([composite_from_bands(scene, recipe) for scene in scenes])
    wanted = opened(precision, bundle).labels(composed)
    assert len(np.unique(wanted)) > 1, "one class everywhere would prove nothing"
    found = opened(precision, bundle, fused=True).labels(scenes)
    assert 100.0 * float(np.mean(found == wanted)) >= least


def test_a_scene_without_a_range_gives_finite_logits(opened, recipe, scenes):
    predictor = opened("fp16", fused=True)
    for value in (0.25, -10000, np.nan, np.inf):
        logits = predictor.logits(np.full_like(scenes[:1], value))
        assert np.isfinite(logits).all(), value


def test_a_segmenter_opens_both_kinds_of_engines(engine, recipe, scenes, bundles, tensorrt):
    if tensorrt.is_rtx:
        pytest.skip("Segmenter.open takes TensorRT where both are installed")
    for fused in (False, True):
        engine("fp16", fused=fused)
    options = {"precision": "fp16", "runtime": "tensorrt", "build": False}
    with Segmenter.open(bundles / "fixed", **options) as plain:
        wanted = [plain(scene) for scene in scenes]
    with Segmenter.open(bundles / "fixed", fused=True, **options) as fused:
        found = list(fused.stream(scenes))
    assert 100.0 * float(np.mean(np.stack(found) == np.stack(wanted))) >= 99.9
