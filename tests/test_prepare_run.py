"""`prepare`: the files it makes, computed here from the recipe, and what it does a second time."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from five_band_scenes import NODATA, WrittenScene, write_band, write_data_set, write_scene

from engines.bands.recipe import BandRecipe
from engines.dataset import pairs_from_folder
from engines.errors import ConfigError, DatasetError, OutputError, UserError
from engines.images import image_from_file, mask_from_file
from engines.progress import SilentProgress
from exporter.classes import classes_from_file
from exporter.prepare import png
from exporter.prepare.request import PreparedRecord, PrepareRequest, all_combinations
from exporter.prepare.run import prepare
from exporter.prepare.scene import Outcome, SceneSettings, SceneTask, prepare_scene

GNE = (BandRecipe("GNE"),)
PALETTE = ((0, 0, 0), (8, 39, 245), (0, 229, 245), (225, 0, 26), (250, 0, 204), (245, 123, 0))
PARTS = ("train", "val", "test")


def prepared(source: Path, out: Path, **options: Any) -> PreparedRecord:
    options = {"recipes": GNE, "jobs": 1, **options}
    return prepare(PrepareRequest(source, out, **options), SilentProgress())


def composite(scene: WrittenScene, letters: str) -> np.ndarray:
    """DESIGN.md's recipe, word by word: (H, W, B) float32 as it goes to cv2.imwrite."""
    planes = []
    for letter in letters:
        band = scene.bands[letter].copy()
        band[band < 0] = np.unique(band[band != NODATA])[0]
        planes.append((band - band.min()) / (band.max() - band.min()) * 255)
    return np.stack(planes, axis=2)


def mask_of(scene: WrittenScene) -> np.ndarray:
    mask = np.zeros(scene.bands["R"].shape, np.uint8)
    for code, points in sorted(scene.polygons, key=lambda polygon: polygon[0]):
        cv2.fillPoly(mask, [points], int(code))
    return mask


def file_of(root: Path, kind: str, name: str, suffix: str = ".png") -> Path:
    found = list((root / kind).glob(f"*/{name}{suffix}"))
    assert len(found) == 1, "no scene lies in two parts"
    return found[0]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "논 원천 자료"


# --- the files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("hw", [(96, 128), (200, 151)])  # the second is compressed by zlib-ng
def test_composites_have_the_bytes_that_opencv_writes_of_the_recipe(
    raw: Path, tmp_path: Path, zipped: bool, hw: tuple[int, int]
) -> None:
    scenes = write_data_set(raw, 4, zipped=zipped, hw=hw)
    prepared(raw, tmp_path / "자료")
    for scene in scenes:
        assert cv2.imwrite(str(tmp_path / "expected.png"), composite(scene, "GNE"))
        made = file_of(tmp_path / "자료", "images", scene.name)
        assert made.read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_a_reader_of_gne_has_red_edge_in_red_and_green_in_blue(raw: Path, tmp_path: Path) -> None:
    (scene,) = write_data_set(raw, 1)
    prepared(raw, tmp_path / "out")
    image = image_from_file(file_of(tmp_path / "out", "images", scene.name))
    for channel, letter in enumerate("ENG"):
        # Half to even, as OpenCV rounds; saturation has nothing to do here.
        expected = np.rint(composite(scene, letter)[:, :, 0]).astype(np.uint8)
        np.testing.assert_array_equal(image[:, :, channel], expected)


def test_masks_are_painted_by_ascending_code_with_the_palette(raw: Path, tmp_path: Path) -> None:
    scenes = write_data_set(raw, 6)
    prepared(raw, tmp_path / "out")
    for scene in scenes:
        picture = PIL.Image.open(file_of(tmp_path / "out", "masks", scene.name))
        assert picture.mode == "P"
        assert picture.getpalette()[:18] == [value for rgb in PALETTE for value in rgb]
        np.testing.assert_array_equal(np.asarray(picture), mask_of(scene))


def test_the_data_set_is_read_by_the_other_commands(raw: Path, tmp_path: Path) -> None:
    write_data_set(raw, 10)
    prepared(raw, tmp_path / "out")
    sizes = [len(pairs_from_folder(tmp_path / "out", part=part)) for part in PARTS]
    assert sizes == [8, 1, 1]
    listed = classes_from_file(tmp_path / "out" / "classes.txt")
    assert listed.names == ("background", "normal", "doyeol", "dobok", "gyulju", "bujin")
    assert listed.palette == PALETTE


@pytest.mark.parametrize("letters", ["RGBNE", "ENGB", "NE", "B"])
@pytest.mark.parametrize("suffix", ["npy", "tiff"])
def test_other_numbers_of_bands_keep_their_order(
    raw: Path, tmp_path: Path, letters: str, suffix: str
) -> None:
    (scene,) = write_data_set(raw, 1)
    recipes = (BandRecipe(letters),)
    prepared(raw, tmp_path / "out", recipes=recipes, format=None if suffix == "npy" else "tiff")
    path = file_of(tmp_path / "out", "images", scene.name, ".npy" if suffix == "npy" else ".tif")
    image = image_from_file(path, channels=len(letters))
    np.testing.assert_array_equal(image, np.rint(composite(scene, letters)).astype(np.uint8))


@pytest.mark.parametrize("kind", ["npy", "tiff"])
def test_three_bands_in_other_formats_are_rgb_as_in_the_png(
    raw: Path, tmp_path: Path, kind: str
) -> None:
    (scene,) = write_data_set(raw, 1)
    prepared(raw, tmp_path / "out", format=kind)
    path = file_of(tmp_path / "out", "images", scene.name, {"npy": ".npy", "tiff": ".tif"}[kind])
    expected = np.rint(composite(scene, "ENG")).astype(np.uint8)
    np.testing.assert_array_equal(image_from_file(path), expected)


def test_every_combination_of_three_is_a_data_set_of_its_own(raw: Path, tmp_path: Path) -> None:
    scenes = write_data_set(raw, 3)
    out = tmp_path / "out"
    record = prepared(raw, out, recipes=all_combinations("chw_minmax", NODATA))
    assert set(record.roots) == {
        "RGB", "RGN", "RGE", "RBN", "RBE", "RNE", "GBN", "GBE", "GNE", "BNE",
    }  # fmt: skip
    for letters, root in record.roots.items():
        assert root == out / letters
        for scene in scenes:
            assert cv2.imwrite(str(tmp_path / "expected.png"), composite(scene, letters))
            made = file_of(root, "images", scene.name)
            assert made.read_bytes() == (tmp_path / "expected.png").read_bytes()
            found = mask_from_file(file_of(root, "masks", scene.name))
            np.testing.assert_array_equal(found, mask_of(scene))
        assert len(pairs_from_folder(root, part="train")) == 3
        assert image_from_file(root / "sheet.png").shape[1] > 100


def test_tables_say_what_is_where(raw: Path, tmp_path: Path) -> None:
    scenes = write_data_set(raw, 10)
    out = tmp_path / "out"
    prepared(raw, out)
    with open(out / "split.csv", encoding="utf-8", newline="") as file:
        parts = {row["scene"]: row["part"] for row in csv.DictReader(file)}
    assert parts == {scene.name: file_of(out, "images", scene.name).parent.name for scene in scenes}
    with open(out / "balance.csv", encoding="utf-8-sig", newline="") as file:
        rows = {(row["part"], row["class"]): row for row in csv.DictReader(file)}
    masks = [mask_of(scene) for scene in scenes if parts[scene.name] == "train"]
    for index in range(6):
        row = rows["train", str(index)]
        assert int(row["pixels"]) == sum(int((mask == index).sum()) for mask in masks)
        assert int(row["scenes"]) == sum(bool((mask == index).any()) for mask in masks)
    assert rows["all", "5"]["name_ko"] == "부진"
    summary = json.loads((out / "prepare.json").read_text(encoding="utf-8"))
    assert summary["combinations"][0]["channels"] == "ENG"
    assert summary["split"]["scenes"] == {"train": 8, "val": 1, "test": 1}
    assert summary["left_out"] == []


# --- PNG ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noise", "plain", "steps", "smooth", "one column"])
def test_a_png_has_the_bytes_of_opencv_with_and_without_zlib_ng(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(1)
    image = {
        "noise": random.integers(0, 256, (211, 150, 3)),
        "plain": np.full((300, 300, 3), 7),
        "steps": np.repeat(random.integers(0, 9, (190, 40, 3)), 5, axis=1),
        "smooth": np.add.outer(np.arange(256), np.arange(200))[:, :, np.newaxis] // (2, 3, 4),
        "one column": random.integers(0, 2, (70000, 1, 3)),
    }[kind].astype(np.uint8)
    written, expected = cv2.imencode(".png", image[:, :, ::-1].copy())
    assert written
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    assert png.fast_encoder() == "zlib-ng"
    assert png.png_of_composite(planes) == expected.tobytes()
    monkeypatch.setattr(png, "_compressor", lambda: None)
    assert png.png_of_composite(planes) == expected.tobytes()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_planes_become_an_image(count: int) -> None:
    planes = np.random.default_rng(2).integers(0, 256, (count, 7, 9), np.uint8)
    image = png.image_of_planes(planes)
    assert image.flags.c_contiguous
    assert np.array_equal(image, np.stack(list(planes), axis=2))


def test_without_the_same_bytes_in_the_trial_opencv_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_png_by_opencv", lambda image: b"another version of OpenCV")
    png._compressor.cache_clear()
    try:
        assert png.fast_encoder() == ""
        planes = np.zeros((3, 200, 200), np.uint8)
        assert png.png_of_composite(planes) == b"another version of OpenCV"
    finally:
        png._compressor.cache_clear()


# --- a second time --------------------------------------------------------------------------------


def identities(out: Path) -> dict[str, tuple[int, int]]:
    """A file that is written again is another one, even with the same bytes."""
    files = [path for kind in ("images", "masks") for path in (out / kind).glob("*/*")]
    return {
        path.name + path.parts[-3]: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files
    }


def test_a_second_run_does_nothing_again(raw: Path, tmp_path: Path) -> None:
    write_data_set(raw, 5)
    first = prepared(raw, tmp_path / "out")
    before = identities(tmp_path / "out")
    again = prepared(raw, tmp_path / "out")
    assert identities(tmp_path / "out") == before
    assert (first.reused, again.reused, again.scenes) == (0, 5, 5)


def damage_image(out: Path, scene: WrittenScene) -> None:
    path = file_of(out, "images", scene.name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_mask(out: Path, scene: WrittenScene) -> None:
    path = file_of(out, "masks", scene.name)
    path.write_bytes(path.read_bytes()[:-1])


def remove_image(out: Path, scene: WrittenScene) -> None:
    file_of(out, "images", scene.name).unlink()


@pytest.mark.parametrize("spoil", [damage_image, cut_mask, remove_image])
def test_a_scene_whose_files_were_spoilt_is_done_again(
    raw: Path, tmp_path: Path, spoil: Callable[[Path, WrittenScene], None]
) -> None:
    scenes = write_data_set(raw, 3)
    out = tmp_path / "out"
    prepared(raw, out)
    expected = {path: path.read_bytes() for path in out.glob("*/*/*.png")}
    spoil(out, scenes[1])
    assert prepared(raw, out).reused == 2
    assert {path: path.read_bytes() for path in out.glob("*/*/*.png")} == expected


def test_a_scene_whose_source_was_altered_is_done_again(raw: Path, tmp_path: Path) -> None:
    scenes = write_data_set(raw, 3)
    out = tmp_path / "out"
    prepared(raw, out)
    new = scenes[0].bands["N"][::-1].copy()
    write_band(scenes[0].files["N"], new)
    assert prepared(raw, out).reused == 2
    scenes[0].bands["N"] = new
    assert cv2.imwrite(str(tmp_path / "expected.png"), composite(scenes[0], "GNE"))
    made = file_of(out, "images", scenes[0].name)
    assert made.read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_a_band_that_is_not_needed_may_change(raw: Path, tmp_path: Path) -> None:
    scenes = write_data_set(raw, 2)
    prepared(raw, tmp_path / "out")
    scenes[0].files["B"].unlink()
    assert prepared(raw, tmp_path / "out").reused == 2


def test_new_scenes_join_and_the_others_stay_in_their_parts(raw: Path, tmp_path: Path) -> None:
    write_data_set(raw, 10)
    out = tmp_path / "out"
    prepared(raw, out)
    before = identities(out)
    write_data_set(raw, 20)
    record = prepared(raw, out)
    assert (record.scenes, record.reused) == (20, 0)  # written anew, so with other times
    parts = (out / "split.csv").read_text(encoding="utf-8").splitlines()
    assert len(parts) == 21
    assert set(before) <= set(identities(out))


def test_a_scene_that_is_gone_from_the_source_goes(raw: Path, tmp_path: Path) -> None:
    scenes = write_data_set(raw, 5)
    out = tmp_path / "out"
    prepared(raw, out)
    for path in (*scenes[2].files.values(), scenes[2].json):
        path.unlink()
    assert prepared(raw, out).scenes == 4
    assert not list(out.glob(f"*/*/{scenes[2].name}*"))
    assert sum(len(list((out / "images").glob(f"{part}/*"))) for part in PARTS) == 4


def test_another_seed_moves_files_and_makes_none(raw: Path, tmp_path: Path) -> None:
    write_data_set(raw, 20)
    out = tmp_path / "out"
    prepared(raw, out)
    before, split = identities(out), (out / "split.csv").read_bytes()
    assert prepared(raw, out, seed=5).reused == 20
    assert identities(out) == before
    assert (out / "split.csv").read_bytes() != split
    assert [len(pairs_from_folder(out, part=part)) for part in PARTS] == [16, 2, 2]


def test_other_bands_or_another_source_need_another_folder(raw: Path, tmp_path: Path) -> None:
    write_data_set(raw, 2)
    prepared(raw, tmp_path / "out")
    with pytest.raises(OutputError, match="holds a data set of other settings"):
        prepared(raw, tmp_path / "out", recipes=(BandRecipe("RGB"),))
    shutil.copytree(raw, tmp_path / "other")
    with pytest.raises(OutputError, match="holds a data set of other raw data"):
        prepared(tmp_path / "other", tmp_path / "out")


def test_a_file_of_somebody_else_stays_and_is_told(raw: Path, tmp_path: Path) -> None:
    write_data_set(raw, 2)
    out = tmp_path / "out"
    prepared(raw, out)
    (out / "images" / "train" / "mine.png").write_bytes(b"x")
    record = prepared(raw, out)
    assert "images/train/mine.png is no file of this data set" in record.warnings
    assert (out / "images" / "train" / "mine.png").read_bytes() == b"x"


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b"[" * 5000 + b"\n", b"\xff\xfe\n", b'{"format":1}']
)
def test_a_journal_that_is_none_is_begun_again(raw: Path, tmp_path: Path, content: bytes) -> None:
    write_data_set(raw, 2)
    out = tmp_path / "out"
    prepared(raw, out)
    (out / ".riceseg-prepare" / "finished.jsonl").write_bytes(content)
    assert prepared(raw, out).reused == 0
    assert len(list(out.glob("images/*/*.png"))) == 2


def test_a_journal_that_leads_out_of_the_data_set_is_not_followed(
    raw: Path, tmp_path: Path
) -> None:
    write_data_set(raw, 1)
    out = tmp_path / "out"
    prepared(raw, out)
    journal = out / ".riceseg-prepare" / "finished.jsonl"
    text = journal.read_text(encoding="utf-8")
    victim = tmp_path / "victim.png"
    shutil.copy(next(out.glob("images/*/*.png")), victim)
    for place in ("../victim.png", str(victim)):
        altered = text.replace(next(out.glob("images/*/*.png")).relative_to(out).as_posix(), place)
        assert altered != text
        journal.write_text(altered, encoding="utf-8")
        assert prepared(raw, out).reused == 0
        assert victim.exists()


# --- what cannot be used --------------------------------------------------------------------------


def rewrite_json(scene: WrittenScene, **changes: Any) -> None:
    record = json.loads(scene.json.read_text(encoding="utf-8"))
    record["ANNOTATIONS"][0].update(changes)
    scene.json.write_text(json.dumps(record), encoding="utf-8")


BAD: dict[str, tuple[Callable[[WrittenScene], object], str]] = {
    "missing band": (lambda s: s.files["N"].unlink(), "without band N"),
    "no labels": (lambda s: s.json.unlink(), "without labels"),
    "another size": (
        lambda s: write_band(s.files["E"], s.bands["E"][:-1]),
        "expected bands of one",
    ),
    "another place": (
        lambda s: write_band(s.files["E"], s.bands["E"], georeference=True),
        "different georeference",
    ),
    "all nodata": (
        lambda s: write_band(s.files["G"], np.full_like(s.bands["G"], NODATA)),
        "band G, which is nodata everywhere",
    ),
    "constant": (
        lambda s: write_band(s.files["G"], np.full_like(s.bands["G"], 0.5)),
        "band G, which is 0.5 everywhere",
    ),
    "cut short": (
        lambda s: s.files["G"].write_bytes(s.files["G"].read_bytes()[:-100]),
        "cut short|became shorter|damaged|outside|beyond",
    ),
    "no JSON": (lambda s: s.json.write_bytes(b"{"), "no JSON"),
    "labels of another size": (
        lambda s: s.json.write_text(s.json.read_text("utf-8").replace("96", "97"), "utf-8"),
        "the same height and width",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_scene_that_cannot_be_used_is_left_out_and_named(
    raw: Path, tmp_path: Path, what: str
) -> None:
    scenes = [write_scene(raw, number) for number in range(3)]
    spoil, reason = BAD[what]
    spoil(scenes[1])
    out = tmp_path / "out"
    record = prepared(raw, out)
    assert record.scenes == 2
    assert not list(out.glob(f"*/*/{scenes[1].name}*"))
    listed = json.loads((out / "prepare.json").read_text(encoding="utf-8"))["left_out"]
    assert [item["name"] for item in listed] == [scenes[1].name]
    assert re.search(reason, listed[0]["why"]), listed
    with pytest.raises(UserError, match=reason):
        prepared(raw, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict" / "images").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp949"])
def test_labels_in_other_encodings_are_read(raw: Path, tmp_path: Path, encoding: str) -> None:
    scene = write_scene(raw, 1, encoding=encoding)
    prepared(raw, tmp_path / "out")
    found = mask_from_file(file_of(tmp_path / "out", "masks", scene.name))
    np.testing.assert_array_equal(found, mask_of(scene))


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"OBJECT_CLASS_CODE": "09"}, "of class code '09', which is none of"),
        ({"PYN_XCRDNT": [5, 9], "PYN_YCRDNT": [5, 9]}, "of fewer than 3 corners"),
        ({"PYN_XCRDNT": [500, 600, 600], "PYN_YCRDNT": [5, 5, 9]}, "wholly outside the image"),
    ],
)
def test_a_polygon_that_cannot_be_painted_is_left_out_and_told(
    raw: Path, tmp_path: Path, changes: dict[str, Any], warning: str
) -> None:
    scene = write_scene(raw, 0, codes=("01", "02"))
    rewrite_json(scene, **changes)
    record = prepared(raw, tmp_path / "out")
    assert [warning in text for text in record.warnings if scene.name in text] == [True]
    expected = np.zeros((96, 128), np.uint8)
    cv2.fillPoly(expected, [scene.polygons[1][1]], 2)
    found = mask_from_file(file_of(tmp_path / "out", "masks", scene.name))
    np.testing.assert_array_equal(found, expected)


def test_warnings_are_told_again_by_a_run_that_does_nothing_again(
    raw: Path, tmp_path: Path
) -> None:
    rewrite_json(write_scene(raw, 0, codes=("01", "02")), OBJECT_CLASS_CODE="09")
    first = prepared(raw, tmp_path / "out")
    assert prepared(raw, tmp_path / "out").warnings == first.warnings != ()


def test_where_no_scene_can_be_used_nothing_is_left(raw: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_scene(raw, number).json.unlink()
    out = tmp_path / "new" / "out"
    with pytest.raises(DatasetError, match="without a scene that can be used, 2 left out; the fi"):
        prepared(raw, out)
    assert not out.parent.exists()


# --- where it is written --------------------------------------------------------------------------


def test_the_raw_data_is_no_place_for_the_data_set(raw: Path) -> None:
    write_data_set(raw, 1)
    (raw.parent / "link").symlink_to(raw)
    for out in (raw, raw / "out", raw.parent / "link" / "out"):
        with pytest.raises(OutputError, match="inside the raw data"):
            prepared(raw, out)


def test_a_folder_of_other_things_is_refused(raw: Path, tmp_path: Path) -> None:
    write_data_set(raw, 1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("논문", encoding="utf-8")
    with pytest.raises(OutputError, match=r"holds 'chapter\.txt' and was not made here"):
        prepared(raw, tmp_path / "thesis")
    with pytest.raises(OutputError, match="which is a file"):
        prepared(raw, tmp_path / "thesis" / "chapter.txt")


def test_two_runs_do_not_write_into_one_folder(raw: Path, tmp_path: Path) -> None:
    write_data_set(raw, 2)

    class Meanwhile(SilentProgress):
        def advance(self, done: int, total: int | None) -> None:
            with pytest.raises(OutputError, match="another prepare is at work"):
                prepared(raw, tmp_path / "out")
            refused.append(done)

    refused: list[int] = []
    prepare(PrepareRequest(raw, tmp_path / "out", GNE, jobs=1), Meanwhile())
    assert refused


def test_png_is_for_three_bands(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--format png for the 5 bands RGBNE"):
        PrepareRequest(raw, tmp_path / "out", (BandRecipe("RGBNE"),), format="png")


def test_what_was_left_out_is_told_by_name_however_the_scenes_were_spread(
    raw: Path, tmp_path: Path
) -> None:
    for scene in write_data_set(raw, 4, hw=(40, 56))[:3]:
        scene.json.unlink()

    def backwards(
        tasks: Sequence[SceneTask], settings: SceneSettings, jobs: int
    ) -> Iterator[Outcome]:
        return (prepare_scene(task, settings) for task in reversed(tasks))

    request = PrepareRequest(raw, tmp_path / "out", GNE)
    names = [item.name for item in prepare(request, SilentProgress(), spread=backwards).left_out]
    assert names == [f"R20220726A00R000{number}" for number in range(3)]


def test_numbers_without_end_in_the_list_of_finished_scenes_are_not_believed(
    raw: Path, tmp_path: Path
) -> None:
    write_data_set(raw, 2, hw=(40, 56))
    prepared(raw, tmp_path / "out")
    journal = tmp_path / "out" / ".riceseg-prepare" / "finished.jsonl"
    text = journal.read_text("ascii")
    journal.write_text(re.sub(r'"pixels":\[\d+', '"pixels":[Infinity', text), "ascii")
    assert prepared(raw, tmp_path / "out").reused == 0
