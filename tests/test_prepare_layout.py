"""Where the files of the raw data set are found, in folders and in zips, however hostile."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from five_band_scenes import (
    LETTERS,
    NODATA,
    write_band,
    write_data_set,
    write_scene,
)
from raw_files import BAND, SCENE, only_left_out, with_a_good_scene, zip_of

from engines.errors import DatasetError
from exporter.prepare import source_file
from exporter.prepare.raw_layout import sources_from

# The generator.


def test_a_generated_scene_is_in_the_raw_format(tmp_path: Path) -> None:
    scene = write_scene(tmp_path, 36, hw=(48, 64))
    assert sorted(scene.files) == sorted("RGBNE")
    for letter, path in scene.files.items():
        assert path.name[-9] == letter
        with PIL.Image.open(path) as image:
            band = np.array(image)
        assert band.dtype == np.float32
        np.testing.assert_array_equal(band, scene.bands[letter])
        real = band[band != NODATA]
        assert 0 < real.size < band.size
        assert real.min() < 0 < real.mean() < 1
    assert scene.json.stem == scene.files["R"].stem == scene.name


def test_georeference_and_nodata_are_written_where_asked_for(tmp_path: Path) -> None:
    scene = write_scene(tmp_path, 1, georeference=True)
    with PIL.Image.open(scene.files["N"]) as image:
        tags = dict(image.tag_v2)  # type: ignore[attr-defined]
    assert tags[33550] == (0.05, 0.05, 0.0)
    assert tags[33922][3:5] == (302_000.0, 3_870_000.0)
    assert 32652 in tags[34735]
    write_band(tmp_path / "band.tif", np.zeros((4, 4), np.uint16), nodata_tag="0")
    with PIL.Image.open(tmp_path / "band.tif") as image:
        assert image.mode == "I;16"
        assert image.tag_v2[42113] == "0"  # type: ignore[attr-defined]


# Folders.


def test_scenes_are_found_in_the_folders_of_a_delivery(tmp_path: Path) -> None:
    written = write_data_set(tmp_path, scenes=5)
    source = sources_from(tmp_path)
    assert source.left_out == ()
    assert [scene.name for scene in source.scenes] == sorted(scene.name for scene in written)
    for scene, expected in zip(source.scenes, written, strict=True):
        assert set(scene.bands) == set(LETTERS)
        for letter in LETTERS:
            assert scene.bands[letter].read() == expected.files[letter].read_bytes()
        assert scene.labels is not None
        assert scene.labels.read() == expected.json.read_bytes()


def test_a_zipped_delivery_gives_the_same_bytes_as_its_folders(tmp_path: Path) -> None:
    folders, zips = tmp_path / "folders", tmp_path / "zips"
    written = write_data_set(folders, scenes=4)
    write_data_set(zips, scenes=4, zipped=True)
    assert sorted(path.name for path in zips.iterdir()) == ["TL_json.zip", "TS_org.zip"]
    source = sources_from(zips)
    assert source.left_out == ()
    for scene, expected in zip(source.scenes, written, strict=True):
        scene = pickle.loads(pickle.dumps(scene))  # as a process of its own gets it
        assert scene.bands["E"].read() == expected.files["E"].read_bytes()
        assert scene.labels.read() == expected.json.read_bytes()


def test_one_zip_may_be_given_itself(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "한 장면.zip", (f"a/{BAND}", b"band"), (f"b/{SCENE}.json", b"{}"))
    (scene,) = sources_from(path).scenes
    assert (scene.name, set(scene.bands)) == (SCENE, {"G"})
    assert scene.bands["G"].read() == b"band"
    assert str(scene.labels) == f"{path}: b/{SCENE}.json"


def test_a_scene_may_lack_bands_or_labels(tmp_path: Path) -> None:
    (tmp_path / BAND).write_bytes(b"x")
    (scene,) = sources_from(tmp_path).scenes
    assert set(scene.bands) == {"G"}
    assert scene.labels is None


def test_suffixes_are_taken_in_either_case(tmp_path: Path) -> None:
    for name in ("R20220726A25R1036.TIF", "R20220726A25N1036.tiff", f"{SCENE}.JSON"):
        (tmp_path / name).write_bytes(b"x")
    (scene,) = sources_from(tmp_path).scenes
    assert set(scene.bands) == {"R", "N"}
    assert scene.labels is not None


def test_hidden_files_and_other_kinds_are_passed_over(tmp_path: Path) -> None:
    with_a_good_scene(tmp_path)
    (tmp_path / "설명서.pdf").write_bytes(b"x")
    (tmp_path / f"._{BAND}").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / BAND).write_bytes(b"x")
    zip_of(tmp_path / "mac.zip", (f"__MACOSX/a/._{BAND}", b"x"), ("a/readme.txt", b"x"))
    source = sources_from(tmp_path)
    assert len(source.scenes) == 1
    assert source.left_out == ()


@pytest.mark.parametrize(
    "name", ["논.tif", "R20220726A25X1036.tif", "R20220726A25G103.tif", "G.tif", "split.json"]
)
def test_a_name_that_does_not_follow_the_pattern_is_told(tmp_path: Path, name: str) -> None:
    (with_a_good_scene(tmp_path) / name).write_bytes(b"x")
    told = only_left_out(sources_from(tmp_path))
    assert told.where == str(tmp_path / name)
    assert "does not follow" in told.reason


@pytest.mark.parametrize("prefix", ["a:b", "a*b", "a\x1b[2Jb", "a\nb", os.fsdecode(b"a\xffb")])
def test_a_name_that_is_none_on_every_system_is_told(tmp_path: Path, prefix: str) -> None:
    (with_a_good_scene(tmp_path) / f"{prefix}{BAND}").write_bytes(b"x")
    assert "does not follow" in only_left_out(sources_from(tmp_path)).reason


def test_files_left_out_for_one_reason_are_told_of_together(tmp_path: Path) -> None:
    for number in range(9):
        (with_a_good_scene(tmp_path) / f"photo{number}.tif").write_bytes(b"x")
    told = only_left_out(sources_from(tmp_path))
    assert told.where == str(tmp_path)
    assert told.files == 9
    assert told.reason.startswith("9 files (photo0.tif, photo1.tif, photo2.tif, photo3.tif, ")
    assert "photo5" not in told.reason


def test_of_a_file_that_is_there_twice_the_first_is_taken(tmp_path: Path) -> None:
    for folder in ("b", "a"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / BAND).write_bytes(folder.encode())
    zip_of(tmp_path / "0.zip", (BAND, b"zip"))
    source = sources_from(tmp_path)
    assert source.scenes[0].bands["G"].read() == b"a"
    assert [told.where for told in source.left_out] == [
        str(tmp_path / "b" / BAND),
        f"{tmp_path / '0.zip'}: {BAND}",
    ]
    assert all("was found before" in told.reason for told in source.left_out)


def test_labels_of_other_bands_are_passed_over_unless_there_are_no_others(tmp_path: Path) -> None:
    for name in (BAND, f"{SCENE}.json", "R20220726A25G1036.json"):
        (tmp_path / name).write_bytes(b"x")
    assert sources_from(tmp_path).left_out == ()
    (tmp_path / f"{SCENE}.json").unlink()
    source = sources_from(tmp_path)
    assert source.scenes[0].labels is None
    assert "other than R" in source.left_out[0].reason


def test_labels_without_any_band_are_told(tmp_path: Path) -> None:
    (with_a_good_scene(tmp_path) / f"{SCENE}.json").write_bytes(b"{}")
    assert "without band files" in only_left_out(sources_from(tmp_path)).reason


def test_a_folder_linked_into_itself_is_read_once(tmp_path: Path) -> None:
    with_a_good_scene(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    source = sources_from(tmp_path)
    assert len(source.scenes) == 1
    assert source.left_out == ()


def test_a_link_to_itself_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    with_a_good_scene(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert only_left_out(sources_from(tmp_path)).where == str(tmp_path / "loop")


def test_a_link_to_a_data_set_elsewhere_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "src").mkdir()
    with_a_good_scene(tmp_path / "disk")
    (tmp_path / "src" / "images").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert len(sources_from(tmp_path / "src").scenes) == 1


def test_a_pipe_named_like_a_band_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(with_a_good_scene(tmp_path) / BAND)
    assert len(sources_from(tmp_path).scenes) == 1


def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = with_a_good_scene(tmp_path) / "closed"
    closed.mkdir()
    scandir = os.scandir

    def denied(folder: str) -> Any:
        if folder == str(closed):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    told = only_left_out(sources_from(tmp_path))
    assert (told.where, told.reason) == (
        str(closed),
        "a folder that cannot be read: Permission denied",
    )


@pytest.mark.parametrize("name", ["TS.zip.part0", "TS.z01", "TS.zip.001", "TS.tar", "TS.egg"])
def test_a_part_of_an_archive_or_one_that_is_no_zip_is_told(tmp_path: Path, name: str) -> None:
    (with_a_good_scene(tmp_path) / name).write_bytes(b"x")
    assert "first" in only_left_out(sources_from(tmp_path)).reason


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "nothing there"), ("empty", "no scene"), ("a.txt", "neither a folder nor a zip")],
)
def test_where_there_is_no_scene_the_error_shows_a_name(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(DatasetError, match=rf"{message}.*R20220726A25B1036\.tif"):
        sources_from(tmp_path / name)


def test_a_zip_that_is_none_is_named_where_there_is_no_scene(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(DatasetError, match=r"no scene; .*a\.zip.*cannot be listed"):
        sources_from(tmp_path)


def test_no_file_but_the_zips_is_opened_to_find_the_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data_set(tmp_path, scenes=2)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("builtins.open", refused)
    assert len(sources_from(tmp_path).scenes) == 2


def test_a_file_that_is_gone_or_too_large_is_a_user_s_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / BAND).write_bytes(b"123456789")
    file = sources_from(tmp_path).scenes[0].bands["G"]
    before = file.stamp()
    assert before[0] == 9
    monkeypatch.setattr(source_file, "MAX_FILE_BYTES", 8)
    with pytest.raises(DatasetError, match="more than"):
        file.read()
    (tmp_path / BAND).write_bytes(b"1234")
    assert file.stamp() != before
    (tmp_path / BAND).unlink()
    with pytest.raises(DatasetError, match="No such file"):
        file.read()
    with pytest.raises(DatasetError, match="No such file"):
        file.stamp()
