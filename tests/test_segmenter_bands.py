"""A Segmenter that is given bands: composed by the bundle's recipe, or by the graph itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.errors import ConfigError, ImageError, InputError
from engines.segmenter import Segmenter
from tests.band_bundles import band_bundle, reflectances, stretched
from tests.five_band_scenes import write_band, write_scene
from tests.tiny_models import (
    bundle_document,
    file_entry,
    model_from_text,
    tiny_bundle,
    write_document,
    write_onnx,
)

HW = (12, 16)


def expected(bands: NDArray[Any], nodata: float = -10000.0) -> NDArray[Any]:
    """Of a bundle GNE whose label is the first channel // 64: that is red edge, the last letter."""
    return stretched(bands[:, :, 2], nodata) // 64


# --- what is taken --------------------------------------------------------------------------------


@pytest.mark.parametrize(("channel", "band"), [(0, 2), (1, 1), (2, 0)])
def test_three_bands_reach_the_network_reversed_as_the_training_read_them(
    tmp_path: Path, channel: int, band: int
) -> None:
    scene = reflectances(HW)
    with Segmenter.open(band_bundle(tmp_path, HW, channel=channel)) as seg:
        labels = seg(scene)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, stretched(scene[:, :, band]) // 64)
    assert len(np.unique(labels)) == 4


@pytest.mark.parametrize("letters", ["N", "RE", "RGBN", "NERGB"])
def test_another_number_of_bands_keeps_its_order(tmp_path: Path, letters: str) -> None:
    count = len(letters)
    scene = reflectances(HW, bands=count)
    folder = band_bundle(tmp_path, HW, channel=count - 1, channels=count, letters=letters)
    with Segmenter.open(folder) as seg:
        np.testing.assert_array_equal(seg(scene), stretched(scene[:, :, -1]) // 64)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint16, np.int32])
def test_bands_may_be_wider_integers_or_other_floats(tmp_path: Path, dtype: Any) -> None:
    scene = np.random.default_rng(3).integers(0, 2000, (*HW, 3)).astype(dtype)
    scene[:3] = 0
    with Segmenter.open(band_bundle(tmp_path, HW, nodata=0)) as seg:
        np.testing.assert_array_equal(seg(scene), expected(scene, nodata=0))


def test_a_composed_image_is_taken_as_it_is(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*HW, 3), dtype=np.uint8)
    with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
        np.testing.assert_array_equal(seg(image), image[:, :, 0] // 64)
        assert seg.image(image) is image


def test_a_mapping_gives_bands_by_letter_in_any_order_with_others_beside(tmp_path: Path) -> None:
    scene = reflectances(HW)
    given = {"E": scene[:, :, 2], "R": "no-such-file.tif", "N": scene[:, :, 1], "G": scene[:, :, 0]}
    with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
        np.testing.assert_array_equal(seg(given), expected(scene))


def test_bands_of_several_dtypes_are_composed_each_by_its_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    planes = {"G": rng.integers(0, 9999, HW, dtype=np.uint16), "N": rng.random(HW, np.float32)}
    planes["E"] = rng.integers(0, 200, HW, dtype=np.uint8)
    for channel, letter in enumerate("ENG"):
        folder = band_bundle(tmp_path / letter, HW, channel=channel)
        with Segmenter.open(folder) as seg:
            np.testing.assert_array_equal(seg(planes), stretched(planes[letter]) // 64)


def test_what_a_masked_array_hides_is_nodata(tmp_path: Path) -> None:
    scene = np.random.default_rng(3).integers(100, 2000, (*HW, 3), dtype=np.uint16)
    scene[:3] = 60_000
    masked = np.ma.masked_equal(scene, 60_000)
    hidden = scene.astype(np.float32)
    hidden[:3] = -10000.0
    mapping = {letter: masked[:, :, index] for index, letter in enumerate("GNE")}
    with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
        for given in (masked, mapping):
            np.testing.assert_array_equal(seg(given), expected(hidden))


def test_an_image_with_masked_pixels_is_refused_and_told_of_the_bands(tmp_path: Path) -> None:
    image = np.ma.masked_equal(np.full((*HW, 3), 7, np.uint8), 9)
    image[2, 3:5] = np.ma.masked
    message = "an image with 2 masked pixels; expected an image without a mask: .*measured bands"
    with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
        for call in (seg, seg.image, lambda given: seg.batch([given])):
            with pytest.raises(InputError, match=message):
                call(image)


def test_a_mask_that_hides_nothing_is_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for given in (
        rng.integers(0, 256, (*HW, 3), dtype=np.uint8),
        rng.integers(0, 9999, (*HW, 3), dtype=np.uint16),
        reflectances(HW),
    ):
        with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
            for masked in (np.ma.array(given), np.ma.array(given, mask=np.zeros(given.shape))):
                labels, seen = seg(masked), seg.image(masked)
                np.testing.assert_array_equal(labels, seg(given))
                assert type(labels) is type(seen) is np.ndarray


def test_what_a_masked_array_hides_is_nodata_in_a_fused_graph_too(tmp_path: Path) -> None:
    scene = np.random.default_rng(3).integers(0, 200, (*HW, 3), dtype=np.uint16)
    masked = np.ma.array(scene, mask=np.zeros(scene.shape, bool))
    masked[:3] = np.ma.masked
    wanted = scene[:, :, 0].astype(np.uint8)
    wanted[:3] = 250
    with Segmenter.open(band_bundle(tmp_path, HW, fused=True, nodata=250), fused=True) as seg:
        np.testing.assert_array_equal(seg(masked), wanted)


def test_what_no_float32_holds_is_hidden_or_refused_without_a_warning(tmp_path: Path) -> None:
    scene = reflectances(HW).astype(np.float64)
    scene[3, 4] = 1e300
    hidden = scene.copy()
    hidden[3, 4] = -10000.0
    planes = {"G": scene[:, :, 0], "N": scene[:, :, 1].clip(-1, 1).astype(np.float32)}
    planes["E"] = planes["N"]
    with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
        masked = seg(np.ma.masked_greater(scene, 1e10))
        np.testing.assert_array_equal(masked, expected(hidden.astype(np.float32)))
        for given in (scene, planes):
            with pytest.raises(ImageError, match="expected finite values that a float32 can hold"):
                seg(given)


def test_band_files_give_the_labels_of_their_arrays(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "씬", 3, hw=HW)
    array = np.stack([scene.bands[letter] for letter in "GNE"], axis=2)
    mixed = {"G": str(scene.files["G"]), "N": scene.bands["N"], "E": scene.files["E"]}
    with Segmenter.open(band_bundle(tmp_path / "bundle", HW)) as seg:
        for given in (array, scene.files, mixed):
            np.testing.assert_array_equal(seg(given), expected(array))


def test_what_a_file_calls_nodata_is_nodata_whatever_the_bundle_calls_it(tmp_path: Path) -> None:
    scene = np.random.default_rng(5).random((*HW, 3), np.float32)
    scene[:2] = -32767.0
    files = {letter: tmp_path / f"{letter}.tif" for letter in "GNE"}
    for index, path in enumerate(files.values()):
        write_band(path, scene[:, :, index], nodata_tag="-32767")
    with Segmenter.open(band_bundle(tmp_path / "bundle", HW, nodata=-5.0)) as seg:
        np.testing.assert_array_equal(seg(files), expected(scene, nodata=-32767.0))


def test_a_scene_of_another_size_is_composed_before_it_is_resized(tmp_path: Path) -> None:
    scene = reflectances((30, 50))
    composed = np.stack([stretched(scene[:, :, band]) for band in (2, 1, 0)], axis=2)
    small = cv2.resize(composed, (HW[1], HW[0]), interpolation=cv2.INTER_LINEAR)[:, :, 0] // 64
    rows = ((np.arange(30) + 0.5) * HW[0] / 30).astype(int)
    columns = ((np.arange(50) + 0.5) * HW[1] / 50).astype(int)
    with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
        np.testing.assert_array_equal(seg.image(scene), composed)
        np.testing.assert_array_equal(seg(scene), small[rows][:, columns])


def test_the_scene_is_not_changed(tmp_path: Path) -> None:
    scene = reflectances(HW)
    before = scene.copy()
    scene.setflags(write=False)
    with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
        seg(scene)
    np.testing.assert_array_equal(scene, before)


# --- several at a time ----------------------------------------------------------------------------


def test_a_batch_mixes_scenes_mappings_and_images(tmp_path: Path) -> None:
    scene, other = reflectances(HW, 1), reflectances((20, 9), 2)
    image = np.random.default_rng(1).integers(0, 256, (*HW, 3), dtype=np.uint8)
    mapping = {letter: scene[:, :, index] for index, letter in enumerate("GNE")}
    with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
        found = seg.batch(iter([scene, image, mapping, other] * 3))
        alone = seg(other)
    assert [labels.shape for labels in found[:4]] == [HW, HW, HW, (20, 9)]
    for start in (0, 4, 8):
        np.testing.assert_array_equal(found[start], expected(scene))
        np.testing.assert_array_equal(found[start + 1], image[:, :, 0] // 64)
        np.testing.assert_array_equal(found[start + 2], expected(scene))
        np.testing.assert_array_equal(found[start + 3], alone)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_of_scenes_comes_in_order_from_one_array_filled_again(
    tmp_path: Path, batch: int, fused: bool
) -> None:
    scenes = [np.abs(reflectances(HW, seed)) * 99 for seed in range(7)]
    for seed, scene in enumerate(scenes):
        np.nan_to_num(scene, copy=False, nan=5.0)
        scene[0] = seed  # so that the labels of fused bands, the first as it is, tell them apart
    frame = np.empty((*HW, 3), np.float32)

    def camera() -> Iterator[NDArray[np.float32]]:
        for scene in scenes:
            frame[:] = scene
            yield frame

    with Segmenter.open(band_bundle(tmp_path, HW, fused=True), fused=fused) as seg:
        found = list(seg.stream(camera(), batch=batch))
    assert len(found) == 7
    for labels, scene in zip(found, scenes, strict=True):
        wanted = scene[:, :, 0].astype(np.uint8) if fused else expected(scene)
        np.testing.assert_array_equal(labels, wanted)


def test_a_stream_gives_the_results_before_a_bad_scene(tmp_path: Path) -> None:
    scene = reflectances(HW)
    with Segmenter.open(band_bundle(tmp_path, HW)) as seg:
        results = seg.stream([scene, scene, np.full((*HW, 3), -10000.0)], batch=8)
        assert [next(results).shape for _ in range(2)] == [HW, HW]
        with pytest.raises(ImageError, match="nodata everywhere"):
            next(results)
        assert list(results) == []


def test_windows_are_cut_from_the_composed_scene(tmp_path: Path) -> None:
    """Each window stretched by itself would have other labels."""
    height, width = HW
    text = f"""planes (uint8[N, {height}, {width}, 3] image)
            => (float[N, 3, {height}, {width}] logits)
        {{ values = Cast <to = 1> (image)
           logits = Transpose <perm = [0, 3, 1, 2]> (values) }}"""
    path = write_onnx(model_from_text(text), tmp_path / "logits.onnx")
    document = bundle_document(hw=HW, files={"fp32": file_entry(path, tmp_path)})
    document["outputs"] = ["logits"]
    document["test_mode"] = {"mode": "slide", "crop_size": list(HW), "stride": [8, 8]}
    document["bands"] = {"letters": "GNE", "norm": "chw_minmax", "nodata": -1e4, "fused_hw": None}
    scene = reflectances((20, 40))
    composed = np.stack([stretched(scene[:, :, band]) for band in (2, 1, 0)], axis=2)
    with Segmenter.open(write_document(document, tmp_path), mode="slide") as seg:
        wanted = composed.astype(np.float32).argmax(axis=2)
        np.testing.assert_array_equal(seg(scene), wanted)
        np.testing.assert_array_equal(seg.batch([scene])[0], wanted)
        np.testing.assert_array_equal(next(seg.stream([scene])), wanted)


# --- graphs that compose by themselves ------------------------------------------------------------


def test_a_fused_graph_gets_the_bands_as_they_were_measured(tmp_path: Path) -> None:
    scene = np.random.default_rng(0).integers(0, 200, (*HW, 3)).astype(np.float32)
    mapping = {letter: scene[:, :, i].astype(np.uint16) for i, letter in enumerate("GNE")}
    with Segmenter.open(band_bundle(tmp_path, HW, fused=True), fused=True) as seg:
        for given in (scene, scene.astype(np.uint16), scene.astype(np.float64), mapping):
            np.testing.assert_array_equal(seg(given), scene[:, :, 0].astype(np.uint8))
        assert [labels.shape for labels in seg.batch([scene, mapping])] == [HW, HW]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((*HW, 3), np.uint8), "an image of uint8 for a graph that composes .*fused=True"),
        (np.zeros((12, 17, 3), np.float32), r"\(12, 17, 3\); expected \(12, 16, 3\): .*one size"),
        (np.zeros((3, *HW), np.float32), r"transpose\(1, 2, 0\)"),
        ("scene.tif", "an image of str"),
    ],
)
def test_a_fused_graph_takes_scenes_of_its_size_alone(
    tmp_path: Path, given: Any, message: str
) -> None:
    with (
        Segmenter.open(band_bundle(tmp_path, HW, fused=True), fused=True) as seg,
        pytest.raises(InputError, match=message),
    ):
        seg(given)


def test_a_bundle_without_fused_graphs_says_how_to_get_them(tmp_path: Path) -> None:
    for name, folder in (
        ("plain", band_bundle(tmp_path / "plain", HW)),
        ("images", tiny_bundle(tmp_path / "images")),
    ):
        with pytest.raises(ConfigError, match="--fuse-bands"):
            Segmenter.open(folder, fused=True)
        assert name in folder.name


def test_windows_and_fused_graphs_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode 'slide' with fused=True"):
        Segmenter.open(band_bundle(tmp_path, HW, fused=True), fused=True, mode="slide")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((*HW, 3), np.float32), "an image of float32; expected .*export .* with --bands"),
        ({"G": np.zeros(HW)}, "a mapping of bands for 'tiny', which has no recipe .*--bands GNE"),
    ],
)
def test_bands_for_a_bundle_without_recipe_are_told_how_to_get_one(
    tmp_path: Path, given: Any, message: str
) -> None:
    with Segmenter.open(tiny_bundle(tmp_path)) as seg, pytest.raises(InputError, match=message):
        seg(given)


ZEROS = np.zeros(HW, np.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((*HW, 5), np.float32),
            r"\(12, 16, 5\); expected \(height, width, 3\); .*G, N, E",
        ),
        (np.zeros((3, *HW), np.float32), r"\(3, 12, 16\); .*bands.transpose\(1, 2, 0\)"),
        (np.zeros((1, *HW, 3), np.float32), "one scene at a time"),
        (np.zeros((0, 5, 3), np.float32), r"bands of shape \(0, 5, 3\)"),
        (ZEROS, r"bands of shape \(12, 16\)"),
        (np.zeros((*HW, 3), bool), "an image of bool"),
        (np.zeros((*HW, 3), complex), "an image of complex128"),
        ({"G": ZEROS, "E": ZEROS}, "bands G, E, without N; expected G, N, E"),
        ({}, "bands none, without G, N, E"),
        ({"G": ZEROS, "N": ZEROS, "E": np.zeros((3, 4))}, "bands of different sizes"),
        ({"G": ZEROS, "N": ZEROS, "E": np.zeros((3, 4, 1))}, r"band E of shape \(3, 4, 1\)"),
        ({"G": ZEROS, "N": None, "E": ZEROS}, "band N of NoneType; expected a file name or"),
        ({"G": ZEROS, "N": ZEROS, "E": np.array([["a"]])}, "band E of <U1"),
    ],
)
def test_wrong_bands_are_told_what_to_do(tmp_path: Path, given: Any, message: str) -> None:
    with (
        Segmenter.open(band_bundle(tmp_path, HW)) as seg,
        pytest.raises(InputError, match=message),
    ):
        seg(given)


@pytest.mark.parametrize(
    ("value", "message"),
    [(-10000.0, "band N, which is nodata everywhere"), (0.25, "band N, which is 0.25 everywhere")],
)
def test_a_band_without_contrast_is_named(tmp_path: Path, value: float, message: str) -> None:
    scene = reflectances(HW)
    scene[:, :, 1] = value
    with (
        Segmenter.open(band_bundle(tmp_path, HW)) as seg,
        pytest.raises(ImageError, match=message),
    ):
        seg(scene)


def test_band_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene", 1, hw=HW)
    write_band(scene.files["N"], np.ones((5, 5), np.float32))
    with Segmenter.open(band_bundle(tmp_path / "bundle", HW)) as seg:
        with pytest.raises(ImageError, match="5"):
            seg(scene.files)
        with pytest.raises(ImageError, match=r"nothing\.tif"):
            seg({**scene.files, "G": tmp_path / "nothing.tif"})
