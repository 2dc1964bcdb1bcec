"""Band files are put together to scenes by their names, and to bands when they fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from band_files import Band, Value, doubles, measured, saved_band, shorts, text, tiff

from engines.bands.composite import composite_from_bands, nodata_of_bands
from engines.bands.files import bands_from_files, scene_of_band_file, scenes_in_folder
from engines.bands.names import MicaSenseName, RawName, micasense_name, raw_band_name
from engines.bands.recipe import BandRecipe
from engines.bands.tiff import BandBytes
from engines.errors import ConfigError, ImageError

RAW = "R20220726A25{}1036.tif"


def raw_scene(folder: Path, letters: str = "RGBNE", name: str = RAW) -> dict[str, Path]:
    """A file for each letter, each with values of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        letter: saved_band(folder / name.format(letter), measured((8, 9), seed=ord(letter)))
        for letter in letters
    }


@pytest.mark.parametrize("letter", list("RGBNE"))
def test_the_letter_is_the_ninth_character_from_the_end(letter: str) -> None:
    name = RAW.format(letter)
    assert name[-9] == letter
    assert raw_band_name(name) == RawName("R20220726A25R1036", letter)


@pytest.mark.parametrize(
    ("path", "scene"),
    [
        ("org/R20220726A25N/R20220726A25N1036.tif", "R20220726A25R1036"),
        ("org\\R20220726A25N\\R20220726A25N1036.TIF", "R20220726A25R1036"),
        ("/벼 생육이상/논N0001.tiff", "논R0001"),
        ("N1036.tif", "R1036"),
    ],
)
def test_folders_suffixes_and_scripts_do_not_matter(path: str, scene: str) -> None:
    assert raw_band_name(path) == RawName(scene, "N")


@pytest.mark.parametrize(
    "name",
    ["R20220726A25R1036.json", "R20220726A25R1036.png", "R20220726A25X1036.tif", "1036.tif", "",
     "R20220726A25r1036.tif", "R20220726A25R103.tif", "R20220726A25R10363.tif", "Rough.tif",
     "R20220726A25R１０３６.tif", "R20220726A25R1036", ".tif", "R20220726A25R1036.tif/"],
)  # fmt: skip
def test_other_names_are_none(name: str) -> None:
    # A trailing slash is a folder's name, which is still that of the scene.
    assert (raw_band_name(name) is None) == (not name.endswith("/"))
    assert micasense_name(name) is None


def test_micasense_names_are_told_from_raw_ones() -> None:
    assert micasense_name("000/IMG_0001_5.tif") == MicaSenseName("IMG_0001", 5)
    assert micasense_name("IMG_0001_10.TIF") == MicaSenseName("IMG_0001", 10)
    assert raw_band_name("IMG_0001_5.tif") is None
    for name in ("IMG_0001.tif", "IMG_0001_5.jpg", "IMG__5.tif", "XIMG_0001_5.tif"):
        assert micasense_name(name) is None


def test_scenes_of_a_folder_come_by_name(tmp_path: Path) -> None:
    second = raw_scene(tmp_path, name="R20220726A25{}1037.tif")
    first = raw_scene(tmp_path, "GNE")
    for name in ("R20220726A25R1036.json", "notes.txt", "._R20220726A25N1036.tif"):
        (tmp_path / name).write_text("no band", encoding="utf-8")
    (tmp_path / "photo.tif").write_bytes(b"")
    scenes, left_out = scenes_in_folder(tmp_path)
    assert [scene.name for scene in scenes] == ["R20220726A25R1036", "R20220726A25R1037"]
    assert [scene.files for scene in scenes] == [first, second]
    assert left_out == ("photo.tif: not named like R20220726A25B1036.tif or IMG_0001_1.tif",)


def test_a_link_to_itself_does_not_keep_others_from_being_found(tmp_path: Path) -> None:
    files = raw_scene(tmp_path, "GNE")
    (tmp_path / "loop").symlink_to("loop")
    assert [scene.files for scene in scenes_in_folder(tmp_path)[0]] == [files]


def test_a_second_file_for_a_band_is_left_out(tmp_path: Path) -> None:
    files = raw_scene(tmp_path, "GN")
    saved_band(tmp_path / "R20220726A25G1036.tiff", measured())
    scenes, left_out = scenes_in_folder(tmp_path)
    assert scenes[0].files == files
    assert left_out == (
        "R20220726A25G1036.tiff: band G again, after R20220726A25G1036.tif",
    )  # fmt: skip


def test_the_raw_data_s_folder_for_each_band_is_seen_through(tmp_path: Path) -> None:
    files = {
        letter: raw_scene(tmp_path / f"R20220726A25{letter}", letter)[letter] for letter in "RGBNE"
    }
    (tmp_path / "other").mkdir()
    saved_band(tmp_path / "other" / "photo.tif", measured())
    scenes, left_out = scenes_in_folder(tmp_path)
    assert [(scene.name, scene.files) for scene in scenes] == [("R20220726A25R1036", files)]
    assert left_out == ()


def test_a_scene_of_two_flights_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    for folder, letters in (("아침", "RGB"), ("낮", "GNE")):
        raw_scene(tmp_path / folder, letters)
    whole = raw_scene(tmp_path / "낮", name="R20220726A25{}1037.tif")
    scenes, left_out = scenes_in_folder(tmp_path)
    assert [(scene.name, scene.files) for scene in scenes] == [("R20220726A25R1037", whole)]
    name = RAW.format("G")
    assert left_out == (
        f"{Path('아침', name)}: band G again, after {Path('낮', name)}",
        "scene R20220726A25R1036: its bands lie in several folders, and band G in two of them, "
        "'낮' and '아침': which belong together?",
    )


def test_a_folder_with_nothing_but_mixed_scenes_is_refused(tmp_path: Path) -> None:
    raw_scene(tmp_path / "one", "GN")
    raw_scene(tmp_path / "two", "NE")
    with pytest.raises(ImageError, match=r"band N in two of them, 'one' and 'two'.*give one of"):
        scenes_in_folder(tmp_path)


def test_a_band_folder_beside_a_copy_of_it_is_no_scene(tmp_path: Path) -> None:
    for letter in "RGBNE":
        raw_scene(tmp_path / f"R20220726A25{letter}", letter)
    raw_scene(tmp_path / "R20220726A25N (copy)", "N")
    with pytest.raises(ImageError, match=r"'R20220726A25N' and 'R20220726A25N \(copy\)'"):
        scenes_in_folder(tmp_path)


def test_of_two_whole_scenes_the_first_folder_s_is_taken(tmp_path: Path) -> None:
    files = raw_scene(tmp_path / "1", "GNE")
    raw_scene(tmp_path / "2", "GNE")
    scenes, left_out = scenes_in_folder(tmp_path)
    assert [scene.files for scene in scenes] == [files]
    for line, letter in zip(left_out, "EGN", strict=True):
        name = RAW.format(letter)
        assert line == f"{Path('2', name)}: band {letter} again, after {Path('1', name)}"


def test_a_second_file_in_a_band_s_own_folder_mixes_nothing(tmp_path: Path) -> None:
    files = {letter: raw_scene(tmp_path / letter, letter)[letter] for letter in "GNE"}
    saved_band(tmp_path / "N" / "R20220726A25N1036.tiff", measured())
    scenes, left_out = scenes_in_folder(tmp_path)
    assert [scene.files for scene in scenes] == [files]
    assert left_out == ("R20220726A25N1036.tiff: band N again, after R20220726A25N1036.tif",)


@pytest.mark.parametrize("tiffs", [(), ("photo.tif",)])
def test_a_folder_without_band_files_has_no_scene(tmp_path: Path, tiffs: Sequence[str]) -> None:
    for name in ("photo.png", *tiffs):
        (tmp_path / name).write_bytes(b"")
    scenes, left_out = scenes_in_folder(tmp_path)
    assert scenes == ()
    assert len(left_out) == len(tiffs)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="expected a folder that can be read"):
        scenes_in_folder(tmp_path / "missing")


def test_one_file_finds_its_scene(tmp_path: Path) -> None:
    files = raw_scene(tmp_path, "RGNE")
    raw_scene(tmp_path, name="R20220726A25{}1037.tif")
    scene = scene_of_band_file(files["N"])
    assert (scene.name, scene.files) == ("R20220726A25R1036", files)


def test_one_file_finds_its_scene_across_the_folders_of_the_bands(tmp_path: Path) -> None:
    files = {
        letter: raw_scene(tmp_path / f"R20220726A25{letter}", letter)[letter] for letter in "GNE"
    }
    scene = scene_of_band_file(files["E"])
    assert (scene.name, scene.files) == ("R20220726A25R1036", files)


@pytest.mark.parametrize("name", ["photo.tif", RAW.format("N"), "IMG_0000_1.tif"])
def test_no_band_file_or_no_file_has_no_scene(tmp_path: Path, name: str) -> None:
    (tmp_path / "photo.tif").write_bytes(b"")
    with pytest.raises(ImageError, match=r"which is no .*; expected a file named like R2022"):
        scene_of_band_file(tmp_path / name)


@pytest.mark.parametrize("letters", ["GNE", "ENG", "R", "RGBNE"])
def test_bands_come_in_the_order_of_the_letters(tmp_path: Path, letters: str) -> None:
    bands = bands_from_files(raw_scene(tmp_path), letters)
    assert bands.dtype == np.float32
    expected = np.stack([measured((8, 9), seed=ord(letter)) for letter in letters], axis=2)
    assert np.array_equal(bands, expected)


def test_only_the_files_of_the_letters_are_opened(tmp_path: Path) -> None:
    files = raw_scene(tmp_path)
    files["R"].write_bytes(b"damaged")
    files["B"].unlink()
    assert bands_from_files(files, "GNE").shape == (8, 9, 3)


def test_bands_of_a_zip_file_are_read_from_memory() -> None:
    files = {
        letter: BandBytes(tiff(measured(seed=ord(letter))), f"scenes.zip:{RAW.format(letter)}")
        for letter in "NG"
    }
    bands = bands_from_files(files, "GN")
    assert np.array_equal(bands[:, :, 0], measured(seed=ord("G")))
    with pytest.raises(ImageError, match=r"'scenes\.zip:R20220726A25N1036\.tif', which cannot be"):
        bands_from_files({**files, "N": files["N"]._replace(data=files["N"].data[:99])}, "GN")


def test_a_missing_band_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a scene without band N, E, with R, G, B; expected a fil"):
        bands_from_files(raw_scene(tmp_path, "RGB"), "GNE")


def test_unknown_letters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bands 'GNX'"):
        bands_from_files(raw_scene(tmp_path), "GNX")


def two(
    folder: Path, first: Band, second: Band, **tags: dict[int, Value | None]
) -> dict[str, Path]:
    return {
        "G": saved_band(folder / "g.tif", first, changed=tags.get("g", {})),
        "N": saved_band(folder / "n.tif", second, changed=tags.get("n", {})),
    }


def test_bands_of_different_sizes_are_refused_by_their_names(tmp_path: Path) -> None:
    files = two(tmp_path, measured((8, 9)), measured((8, 10)))
    with pytest.raises(ImageError, match=r"band G of 9x8 \('.*g\.tif'\) and band N of 10x8 \('.*n"):
        bands_from_files(files, "GN")


def georeference(
    east: float = 300000.0, pixel: float = 0.05, system: int = 32652
) -> dict[int, Value | None]:
    """A UTM grid as GDAL writes it."""
    return {
        33550: doubles(pixel, pixel, 0),
        33922: doubles(0, 0, 0, east, 4000000.0, 0),
        34735: shorts(1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, system),
    }


@pytest.mark.parametrize(
    "other",
    [georeference(300000.05), georeference(pixel=0.0501), georeference(system=32651), {},
     georeference(float("nan")), {**georeference(), 34735: None},
     {34264: doubles(0.05, 0.01, 0, 300000, 0.01, -0.05, 0, 4e6, *[0] * 8)},
     {**georeference(), 33922: doubles(*[0, 0, 0, 300000.0, 4000000.0, 0] * 4)}],
    ids=["a pixel to the east", "larger pixels", "another system", "none", "nan", "no system",
         "turned", "control points"],
)  # fmt: skip
def test_bands_of_another_georeference_are_refused(
    tmp_path: Path, other: dict[int, Value | None]
) -> None:
    for pair in ({"g": georeference(), "n": other}, {"g": other, "n": georeference()}):
        files = two(tmp_path, measured(), measured(), **pair)
        with pytest.raises(ImageError, match=r"bands G \(.*\) and N \(.*\) of different georefere"):
            bands_from_files(files, "GN")


@pytest.mark.parametrize(
    "other",
    [georeference(), georeference(300000.0 + 1e-7), {**georeference(), 42113: text("-10000")},
     {**georeference(), 33922: doubles(10, 20, 0, 300000.5, 3999999.0, 0)},
     {34735: georeference()[34735], 34264: doubles(
         0.05, 0, 0, 300000, 0, -0.05, 0, 4e6, 0, 0, 0, 0, 0, 0, 0, 1)}],
    ids=["the same", "a rounding", "nodata", "another tie point", "as a matrix"],
)  # fmt: skip
def test_the_same_georeference_in_other_words_is_the_same(
    tmp_path: Path, other: dict[int, Value | None]
) -> None:
    files = two(tmp_path, measured(), measured(seed=1), g=georeference(), n=other)
    assert np.array_equal(bands_from_files(files, "NG")[:, :, 0], measured(seed=1))


LARGEST_BELOW = float(np.finfo(np.float32).min)


@pytest.mark.parametrize(
    ("dtype", "value", "tag"),
    [
        ("float32", -9999, "-9999"),
        ("float32", -np.inf, "-inf"),
        ("float32", LARGEST_BELOW, "-3.40282346600000016e+38"),  # as GDAL writes it
        ("float64", float(np.finfo(np.float64).min), "-1.7976931348623157e+308"),
        ("int16", -32768, "-32768"),
        ("uint16", 0, "0"),
        ("uint16", 65535, " 65535 "),
        ("uint8", 255, "255"),
    ],
)
def test_what_a_file_calls_nodata_becomes_the_recipe_s(
    tmp_path: Path, dtype: str, value: float, tag: str | None
) -> None:
    band = measured(dtype="float64").round() + 1
    band = band.astype(dtype)
    band[:3] = value
    changed = {42113: None if tag is None else text(tag)}
    files = {"G": saved_band(tmp_path / "g.tif", band, changed=changed)}
    bands = bands_from_files(files, "G")[:, :, 0]
    assert bands.dtype == np.float32
    assert (bands[:3] == -10000).all()
    assert np.array_equal(bands[3:], band[3:].astype(np.float32))
    assert (bands_from_files(files, "G", nodata=-1.5)[:3] == -1.5).all()


@pytest.mark.parametrize("tag", ["nan", None])
def test_nan_stays_and_is_nodata_where_bands_are_used(tmp_path: Path, tag: str | None) -> None:
    band = measured() + np.float32(1)
    band[:3] = np.nan
    changed = {42113: None if tag is None else text(tag)}
    files = {"G": saved_band(tmp_path / "g.tif", band, changed=changed)}
    bands = bands_from_files(files, "G")
    assert np.array_equal(bands[:, :, 0], band, equal_nan=True)
    recipe = BandRecipe("G")
    assert np.array_equal(nodata_of_bands(bands, recipe), np.isnan(band))
    measured_part = band[3:].astype(np.float64)
    image = composite_from_bands(bands, recipe)[:, :, 0]
    assert (image[:3] == 0).all()
    low, high = measured_part.min(), measured_part.max()
    assert np.abs(image[3:] - (measured_part - low) / (high - low) * 255).max() <= 0.501


def test_integers_stay_integers_where_nodata_fits(tmp_path: Path) -> None:
    band = measured(dtype="uint16") + np.uint16(1)
    band[:3] = 0
    files = {"G": saved_band(tmp_path / "g.tif", band, changed={42113: text("0")})}
    for nodata in (0.0, 65535.0):
        bands = bands_from_files(files, "G", nodata=nodata)
        assert bands.dtype == np.uint16
        assert (bands[:3] == nodata).all()
        assert np.array_equal(bands[3:, :, 0], band[3:])
    # Nothing is called nodata here, so the recipe's -10000 asks for no float32.
    files = {"G": saved_band(tmp_path / "g.tif", band)}
    assert np.array_equal(bands_from_files(files, "G")[:, :, 0], band)
    assert bands_from_files(files, "G").dtype == np.uint16
    bytes_alone = {"G": saved_band(tmp_path / "b.tif", band.astype(np.uint8))}
    assert bands_from_files(bytes_alone, "G").dtype == np.uint16


def test_bands_of_different_types_become_float32(tmp_path: Path) -> None:
    files = two(tmp_path, measured(dtype="uint16"), measured())
    bands = bands_from_files(files, "GN")
    assert bands.dtype == np.float32
    assert np.array_equal(bands[:, :, 0], measured(dtype="uint16"))
