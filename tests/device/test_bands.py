"""Bands become the network's image with numpy and Pillow alone, on every Python of a board."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.bands.composite import composite_from_bands, nodata_of_bands
from engines.bands.files import bands_from_files, scene_of_band_file, scenes_in_folder
from engines.bands.recipe import BandRecipe
from engines.errors import ImageError

HW = (20, 31)
RAW = "R20220726A25{}1036.tif"


def reflectances(letter: str) -> np.ndarray:
    values = np.random.default_rng(ord(letter)).uniform(-0.01, 0.7, HW).astype(np.float32)
    values[:3] = -10000
    return values


def written_scene(folder: Path, letters: str = "RGBNE") -> None:
    for letter in letters:
        Image.fromarray(reflectances(letter)).save(folder / RAW.format(letter))


def stretched(values: np.ndarray) -> np.ndarray:
    """The training's recipe, step by step in float32."""
    low = values[values != -10000].min()
    filled = np.where(values < 0, low, values)
    return np.rint((filled - filled.min()) / (filled.max() - filled.min()) * np.float32(255))


def test_the_files_of_a_scene_become_what_the_network_was_trained_on(tmp_path: Path) -> None:
    written_scene(tmp_path)
    scenes, left_out = scenes_in_folder(tmp_path)
    assert [scene.name for scene in scenes] == ["R20220726A25R1036"]
    assert left_out == ()
    bands = bands_from_files(scenes[0].files, "GNE")
    image = composite_from_bands(bands, BandRecipe("GNE"))
    assert image.dtype == np.uint8
    for channel, letter in enumerate("ENG"):  # OpenCV's BGR file, read as RGB
        np.testing.assert_array_equal(image[:, :, channel], stretched(reflectances(letter)))
    empty = nodata_of_bands(bands, BandRecipe("GNE"))
    np.testing.assert_array_equal(empty, np.arange(HW[0])[:, None].repeat(HW[1], axis=1) < 3)


def test_sixteen_bits_are_stretched_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 60000, HW).astype(np.uint16)
    for letter in "GN":
        Image.fromarray(values).save(tmp_path / RAW.format(letter))
    bands = bands_from_files(scene_of_band_file(tmp_path / RAW.format("G")).files, "GN")
    assert bands.dtype == np.uint16
    image = composite_from_bands(bands, BandRecipe("GN"))
    np.testing.assert_array_equal(image[:, :, 1], stretched(values.astype(np.float32)))


def test_a_missing_band_is_named(tmp_path: Path) -> None:
    written_scene(tmp_path, "GN")
    scene = scene_of_band_file(tmp_path / RAW.format("G"))
    with pytest.raises(ImageError, match="E"):
        bands_from_files(scene.files, "GNE")
