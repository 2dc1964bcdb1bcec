"""Bands become the image that the training saw: computed here once more, straight from the recipe.

The expectation is the published way: numpy for the stretch, `cv2.imwrite` of the floats for the
rounding, and a reader that takes OpenCV's BGR for RGB.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engines.bands.composite import (
    BandLimits,
    RunningLimits,
    composite_from_bands,
    limits_of_bands,
    nodata_of_bands,
)
from engines.bands.recipe import LETTERS, BandRecipe, recipe_from_record
from engines.errors import ConfigError, ImageError, InputError


def reflectances(hw: tuple[int, int] = (61, 47), bands: int = 3, seed: int = 0) -> np.ndarray:
    """(H, W, B) float32 with a nodata border, some noise below 0, and no band like another."""
    random = np.random.default_rng(seed)
    values = random.random((*hw, bands), np.float32) * np.float32(0.6) - np.float32(0.01)
    values *= np.linspace(1, 2, bands, dtype=np.float32)
    values[:5] = -10000
    values[:, -3:] = -10000
    return values


def recipe_in_numpy(band: np.ndarray) -> np.ndarray:
    """One band by the recipe's words, as floats 0..255."""
    band = band.copy()
    band[band < 0] = band[band != -10000].min()
    return (band - band.min()) / (band.max() - band.min()) * 255


def rounded_by_opencv(values: np.ndarray, folder: Path) -> np.ndarray:
    path = str(folder / "rounded.png")
    assert cv2.imwrite(path, values)
    read = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    assert read is not None
    return np.asarray(read)


@pytest.mark.parametrize("letters", ["".join(three) for three in permutations(LETTERS, 3)])
def test_each_composite_of_three_bands_is_what_a_reader_of_the_png_sees(
    tmp_path: Path, letters: str
) -> None:
    bands = reflectances(seed=sum(map(ord, letters)))
    stacked = np.stack([recipe_in_numpy(bands[:, :, i]) for i in range(3)], axis=2)
    assert cv2.imwrite(str(tmp_path / "a.png"), stacked)
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"
        expected = np.asarray(image)
    composite = composite_from_bands(bands, BandRecipe(letters))
    assert np.array_equal(composite, expected)
    assert composite.dtype == np.uint8
    assert composite.flags.c_contiguous


def test_gne_is_seen_as_red_edge_infrared_green() -> None:
    assert BandRecipe("GNE").channels == "ENG"


@pytest.mark.parametrize("letters", ["G", "NE", "RGBN", "RGBNE", "ENGRB"])
def test_other_numbers_of_bands_stay_in_the_order_of_the_letters(
    tmp_path: Path, letters: str
) -> None:
    bands = reflectances(bands=len(letters))
    composite = composite_from_bands(bands, BandRecipe(letters))
    assert BandRecipe(letters).channels == letters
    for index in range(len(letters)):
        expected = rounded_by_opencv(recipe_in_numpy(bands[:, :, index]), tmp_path)
        assert np.array_equal(composite[:, :, index], expected)


def test_halves_are_rounded_as_opencv_rounds_them(tmp_path: Path) -> None:
    # From 0 to 255, so that the stretch keeps them: 0.5, 1.5, ... and their neighbours.
    halves = np.arange(255, dtype=np.float32) + np.float32(0.5)
    near = [np.nextafter(halves, np.float32(side)) for side in (0, 255)]
    whole = np.arange(256, dtype=np.float32)
    band = np.concatenate([halves, *near, whole])[np.newaxis, :, np.newaxis]
    composite = composite_from_bands(band, BandRecipe("N"))
    expected = rounded_by_opencv(recipe_in_numpy(band[:, :, 0]), tmp_path)
    assert np.array_equal(composite[:, :, 0], expected)
    # So that it is a test: halves do go to the even number, and the stretch does keep most.
    assert {0, 2, 254} <= set(composite[0, :255, 0].tolist())


def test_a_large_scene_is_the_same_as_its_recipe_at_once(tmp_path: Path) -> None:
    bands = reflectances((700, 300), bands=1)  # more than one block of rows
    bands[650:, :, :] *= 3
    expected = rounded_by_opencv(recipe_in_numpy(bands[:, :, 0]), tmp_path)
    assert np.array_equal(composite_from_bands(bands, BandRecipe("R"))[:, :, 0], expected)


def test_all_negative_values_become_the_smallest_one() -> None:
    band = np.array([[-0.25, -0.5, 0.5, 1.5]], np.float32)[:, :, np.newaxis]
    # -0.5 is low: 1.0 / 2.0 * 255 = 127.5 and 2.0 / 2.0 * 255.
    assert composite_from_bands(band, BandRecipe("R")).ravel().tolist() == [0, 0, 128, 255]


def test_nan_is_nodata() -> None:
    band = np.array([[np.nan, 2.0, 4.0, -10000.0, 3.0]], np.float32)[:, :, np.newaxis]
    assert limits_of_bands(band, BandRecipe("R")) == BandLimits((2.0,), (4.0,))
    assert composite_from_bands(band, BandRecipe("R")).ravel().tolist() == [0, 0, 255, 0, 128]


@pytest.mark.parametrize("nodata", [0, 65535])
def test_uint16_with_a_nodata_of_its_own(nodata: int) -> None:
    band = np.array([[nodata, 100, 300, nodata, 200]], np.uint16)[:, :, np.newaxis]
    composite = composite_from_bands(band, BandRecipe("R", nodata=nodata))
    assert composite.ravel().tolist() == [0, 0, 255, 0, 128]  # 127.5 to the even one


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float64", ">f4", ">u2"])
def test_each_kind_of_number_gives_the_same_image(dtype: str) -> None:
    whole = np.random.default_rng(0).integers(0, 200, (20, 30, 2))
    expected = composite_from_bands(whole.astype(np.float32), BandRecipe("RN"))
    assert np.array_equal(composite_from_bands(whole.astype(dtype), BandRecipe("RN")), expected)


def test_the_bands_are_only_read_and_may_lie_in_memory_in_any_order() -> None:
    bands = reflectances()
    bands.flags.writeable = False
    before = bands.copy()
    composite = composite_from_bands(bands, BandRecipe("GNE"))
    planar = np.ascontiguousarray(bands.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert np.array_equal(composite_from_bands(planar, BandRecipe("GNE")), composite)
    assert np.array_equal(composite_from_bands(bands[::-1], BandRecipe("GNE")), composite[::-1])
    assert np.array_equal(bands, before)


def test_limits_of_blocks_are_those_of_the_whole() -> None:
    bands = reflectances((64, 64))
    running = RunningLimits(BandRecipe("GNE"))
    for top in (48, 0, 32, 16):
        for left in (32, 0):
            running.add(bands[top : top + 16, left : left + 32])
    limits = running.result()
    assert limits == limits_of_bands(bands, BandRecipe("GNE"))
    for index in range(3):
        valid = bands[:, :, index][bands[:, :, index] != -10000]
        assert (limits.low[index], limits.high[index]) == (valid.min(), valid.max())


def test_a_part_with_the_limits_of_the_whole_is_that_part_of_the_whole() -> None:
    bands, recipe = reflectances((64, 64)), BandRecipe("GNE")
    limits = limits_of_bands(bands, recipe)
    part = composite_from_bands(bands[16:40, 8:50], recipe, limits)
    assert np.array_equal(part, composite_from_bands(bands, recipe)[16:40, 8:50])
    # One that has no value at all is no error then.
    assert not composite_from_bands(bands[:5], recipe, limits).any()


def test_values_outside_given_limits_become_the_nearest_end() -> None:
    band = np.array([[-5.0, 0.5, 1.0, 3.0, 9.0]], np.float32)[:, :, np.newaxis]
    composite = composite_from_bands(band, BandRecipe("R"), BandLimits((1.0,), (5.0,)))
    assert composite.ravel().tolist() == [0, 0, 0, 128, 255]  # 127.5 to the even one


def test_ready_values_are_not_stretched() -> None:
    recipe = BandRecipe("R", norm="uint8")
    values = np.array([[10.0, 10.5, 11.5, 200.0, np.nan, -10000.0]], np.float32)[:, :, np.newaxis]
    assert composite_from_bands(values, recipe).ravel().tolist() == [10, 10, 12, 200, 0, 0]
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(composite_from_bands(every, recipe), every)
    assert limits_of_bands(every, recipe) == BandLimits((0.0,), (255.0,))


@pytest.mark.parametrize("bad", [-1.0, 255.5, 4095.0])
def test_values_that_are_not_ready_are_refused(bad: float) -> None:
    values = np.array([[0.0, bad]], np.float32)[:, :, np.newaxis]
    with pytest.raises(ImageError, match=r"band R with values from .* and norm uint8; expected"):
        composite_from_bands(values, BandRecipe("R", norm="uint8"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([-10000, -10000, np.nan], "band E, which is nodata everywhere"),
        ([0.25, 0.25, -10000], "band E, which is 0.25 everywhere"),
        ([-0.25, -0.5, -10000], "band E without a value of 0 or more, from -0.5 to -0.25"),
        ([0, 1, np.inf], "band E with values from 0 to inf"),
        ([0, 1, -np.inf], "band E with values from -inf to 1"),
        ([np.inf, np.inf, -10000], "band E with values from inf to inf"),
        ([-3e38, 3e38, 0], r"band E with values from -3e\+38 to 3e\+38"),
        ([0, 1e300, 1], "band E with values from 0 to inf"),
    ],
)
def test_a_band_that_cannot_be_stretched_is_named(values: list[float], message: str) -> None:
    good = np.array([[0.0, 0.5, 1.0]])
    bands = np.stack([good, np.array([values])], axis=2)
    with pytest.raises(ImageError, match=message):
        composite_from_bands(bands, BandRecipe("GE"))
    with pytest.raises(ImageError, match=message):
        limits_of_bands(bands, BandRecipe("GE"))


def test_without_any_block_there_are_no_limits() -> None:
    with pytest.raises(ImageError, match="band R, which is nodata everywhere"):
        RunningLimits(BandRecipe("R")).result()


@pytest.mark.parametrize(
    "bands",
    [
        np.zeros((4, 5), np.float32),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((0, 5, 2), np.float32),
        np.zeros((4, 5, 2), np.complex64),
        np.zeros((4, 5, 2), bool),
        np.zeros((4, 5, 2), object),
    ],
)
def test_other_arrays_are_refused(bands: np.ndarray) -> None:
    for call in (composite_from_bands, limits_of_bands, nodata_of_bands):
        with pytest.raises(InputError, match=r"expected \(height, width, 2\) of real numbers"):
            call(bands, BandRecipe("GN"))


@pytest.mark.parametrize("limits", [((0.0,), (1.0,)), ((1.0, 0.0), (1.0, 2.0)),
                                    ((float("nan"),) * 2, (1.0, 1.0))])  # fmt: skip
def test_limits_that_do_not_fit_are_refused(limits: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(InputError, match="take them from limits_of_bands"):
        composite_from_bands(np.ones((4, 5, 2)), BandRecipe("GN"), BandLimits(*limits))


def test_a_pixel_is_nodata_where_no_band_has_a_value() -> None:
    bands = np.array([[[-10000, np.nan], [-10000, 1], [2, np.nan], [3, 4]]], np.float32)
    empty = nodata_of_bands(bands, BandRecipe("GN"))
    assert empty.tolist() == [[True, False, False, False]]


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements=st.one_of(
            st.floats(-2, 1e4, width=32),
            st.sampled_from([-10000.0, 0.0, 1.0, 65535.0]),
        ),
    )
)
def test_any_band_is_stretched_by_the_recipe_or_refused(band: np.ndarray) -> None:
    valid = band[band != -10000]
    try:
        composite = composite_from_bands(band[:, :, np.newaxis], BandRecipe("N"))[:, :, 0]
    except ImageError:
        assert not len(valid) or valid.max() < 0 or valid.min() == valid.max()
        return
    # cv2.imwrite converts so; convertScaleAbs and the like do not.
    expected = np.asarray(cv2.add(recipe_in_numpy(band), 0, dtype=cv2.CV_8U))
    assert np.array_equal(composite, expected.reshape(band.shape))


def test_a_recipe_survives_its_record() -> None:
    recipe = BandRecipe("NGE", "uint8", 0.0)
    assert recipe.record() == {"letters": "NGE", "norm": "uint8", "nodata": 0.0}
    assert recipe_from_record({**recipe.record(), "fused_hw": None}) == recipe


@pytest.mark.parametrize("letters", ["", "GG", "gne", "GNX", "GNERBR", "G,N", None, 5, ["G", "N"]])
def test_unknown_or_repeated_letters_are_refused(letters: object) -> None:
    with pytest.raises(ConfigError, match="expected one to five letters of R, G, B, N, E"):
        BandRecipe(letters)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["minmax", "", None])
def test_an_unknown_norm_is_refused(norm: object) -> None:
    with pytest.raises(ConfigError, match="expected chw_minmax or uint8"):
        BandRecipe("GNE", norm)  # type: ignore[arg-type]


@pytest.mark.parametrize("nodata", [np.nan, np.inf, 1e39, "0", None, True])
def test_a_nodata_that_no_band_can_have_is_refused(nodata: object) -> None:
    with pytest.raises(ConfigError, match="expected a finite number that a float32 can hold"):
        BandRecipe("GNE", nodata=nodata)  # type: ignore[arg-type]


@pytest.mark.parametrize("record", [{}, {"letters": "GNE", "norm": "uint8"}, None, "GNE"])
def test_a_record_without_all_of_it_is_refused(record: object) -> None:
    with pytest.raises(ConfigError, match="expected letters, norm and nodata"):
        recipe_from_record(record)  # type: ignore[arg-type]
