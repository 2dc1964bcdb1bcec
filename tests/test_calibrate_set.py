"""`riceseg calibrate-set`: a folder of images becomes a list, a contact sheet and a table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calibration.image_set import contact_sheet, files, lettering, written
from calibration.image_set.contact_sheet import Caption
from calibration.image_set.facts import Reading, facts_from_file
from calibration.image_set.files import SetFiles, list_line, written_together
from calibration.image_set.reading import read_files
from engines.dataset import calibration_images_from, masks_of_images, validation_images_from
from engines.errors import DatasetError, ImageError, OutputError
from engines.progress import SilentProgress
from tests.tiny_segformer import environment, error_of, mask_of, photo, run_cli

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo"


def save(path: Path, seed: int, hw: tuple[int, int] = (48, 64), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(hw, seed)).save(path, **options)
    return path


def save_pair(root: Path, part: str, name: str, seed: int) -> Path:
    image = save(root / "images" / part / f"{name}.png", seed)
    mask = root / "masks" / part / f"{name}.png"
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask_of(photo((48, 64), seed))).save(mask)
    return image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 training images, with copies, and 3 validation images, of which training has two."""
    root = tmp_path / "논 자료"
    for i in range(12):
        save_pair(root, "train", f"t{i:02d}", i)
    for i in range(3):
        save_pair(root, "val", f"v{i}", 100 + i)
    train = root / "images" / "train"
    shutil.copy(train / "t03.png", train / "벼 사본.png")
    save(train / "t04 again.jpg", 4, quality=80)
    shutil.copy(root / "images" / "val" / "v1.png", train / "x.png")
    save(train / "y.jpg", 102, quality=80)
    return root


def lines_of(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("# ")]


# --- the whole command --------------------------------------------------------------------------


def test_a_data_set_gives_a_list_without_copies_and_validation_images(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "목록" / "calib.txt"
    result = run_cli("calibrate-set", data, "--val", data, "--out", out, "--count", 8)
    assert result.exit_code == 0, result.stderr
    chosen = calibration_images_from(out)
    assert len(set(chosen)) == 8
    train = (data / "images" / "train").resolve()
    assert {path.resolve() for path in chosen} <= {train / f"t{i:02d}.png" for i in range(12)}
    for line in (
        "warning: left out x.png: the same file as validation image v1.png",
        "warning: left out y.jpg: looks like validation image v2.png (",
        "warning: left out 벼 사본.png: the same file as t03.png",
        "warning: left out t04 again.jpg: looks like t04.png (",
    ):
        assert line in result.stderr
    assert f"8 of 12 images: {out}" in result.stdout
    assert {path.name for path in out.parent.iterdir()} == {"calib.txt", "calib.png", "calib.json"}


def test_without_val_a_data_set_is_compared_with_its_own_validation_images(
    data: Path, tmp_path: Path
) -> None:
    save(data / "overview.png", 200)  # beside the parts, and of none
    result = run_cli("calibrate-set", data, "--out", tmp_path / "own.txt")
    assert "compared with the data set's own validation images" in result.stderr
    assert "left out x.png: the same file as validation image v1.png" in result.stderr
    assert "no --val" not in result.stderr
    found = json.loads((tmp_path / "own.json").read_text(encoding="utf-8"))
    assert found["validation"] == str(data)
    run_cli("calibrate-set", data, "--val", data, "--out", tmp_path / "given.txt")
    assert lines_of(tmp_path / "own.txt") == lines_of(tmp_path / "given.txt")


@pytest.mark.parametrize("kind", ["no part", "empty part", "undivided", "a part", "a list"])
def test_images_that_are_compared_with_no_others_are_said_to_be(
    kind: str, data: Path, tmp_path: Path
) -> None:
    source = data
    save(data / "overview.png", 200)
    val = data / "images" / "val"
    if kind == "empty part":
        for path in val.iterdir():
            path.unlink()
    elif kind in ("no part", "undivided"):
        shutil.rmtree(val)
    if kind == "undivided":
        (data / "images" / "train").rename(tmp_path / "images")
        (data / "images").rmdir()
        (tmp_path / "images").rename(data / "images")
    elif kind == "a part":
        source = data / "images" / "train"
    elif kind == "a list":
        source = tmp_path / "list.txt"
        source.write_text("논 자료/images/train/t00.png\n", encoding="utf-8")
    out = tmp_path / "calib.txt"
    result = run_cli("calibrate-set", source, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "warning: not compared with validation images: no --val" in result.stderr
    assert json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["validation"] is None


def test_the_coverage_file_counts_what_an_own_count_finds(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "calib.txt"
    run_cli("calibrate-set", data, "--val", data, "--out", out, "--count", 5, "--seed", 3)
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert (found["candidates"], found["chosen"], found["seed"]) == (12, 5, 3)
    assert [item["file"] for item in found["images"]] == lines_of(out)
    reasons = [item["reason"] for item in found["left_out"]]
    assert sorted(reasons) == [
        "duplicate", "near duplicate", "near validation", "validation"
    ]  # fmt: skip
    for row in found["coverage"]:
        if row["kind"] == "class":
            holders = [i for i in found["images"] if int(row["name"]) in i["classes"]]
            assert row["chosen"] == len(holders)
            assert row["chosen_percent"] == 20 * len(holders)
    for key in ("candidates", "chosen"):
        assert sum(stratum[key] for stratum in found["strata"]) == found[key]


def test_the_table_names_classes_and_shares(data: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("배경\n벼\n", encoding="utf-8")
    out = tmp_path / "calib.txt"
    result = run_cli("calibrate-set", data, "--out", out, "--count", 400, "--classes", names)
    rows = [line.split() for line in result.stdout.splitlines()]
    masks = [np.asarray(Image.open(p)) for p in (data / "masks" / "train").iterdir()]
    holders = sum(bool((mask == 1).any()) for mask in masks)
    share = f"{100 * holders / 12:.1f}"
    assert ["1", "벼", str(holders), share, "%", str(holders), share, "%"] in rows
    assert [row[0] for row in rows if "dark" in row] == ["brightness"]


def test_with_reduced_zero_labels_there_is_one_class_less(data: Path, tmp_path: Path) -> None:
    found = []
    for name, options in {"a": (), "b": ("--reduce-zero-label",)}.items():
        out = tmp_path / f"{name}.txt"
        run_cli("calibrate-set", data, "--out", out, *options)
        rows = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["coverage"]
        found.append({row["name"]: row["candidates"] for row in rows if row["kind"] == "class"})
    assert sorted(found[0]) == ["0", "1", "2", "3", "4", "5"]
    assert found[1] == {str(int(k) - 1): v for k, v in found[0].items() if k != "0"}


def test_the_same_command_gives_the_same_list_and_a_larger_one_begins_with_it(
    data: Path, tmp_path: Path
) -> None:
    lists = {}
    for name, options in {
        "a": ("--count", 5),
        "b": ("--count", 5),
        "more": ("--count", 9),
        "seed": ("--count", 5, "--seed", 1),
    }.items():
        run_cli("calibrate-set", data, "--out", tmp_path / f"{name}.txt", *options)
        lists[name] = lines_of(tmp_path / f"{name}.txt")
    assert lists["a"] == lists["b"] == lists["more"][:5]
    assert set(lists["seed"]) != set(lists["a"])


def test_fewer_images_than_wanted_are_all_taken_and_that_is_said(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "photos" / f"{i}.png", i)
    out = tmp_path / "calib.txt"
    result = run_cli("calibrate-set", tmp_path / "photos", "--out", out)
    assert "3 images to choose from, fewer than --count 256: all are taken" in result.stderr
    assert "no masks: chosen by light and sharpness alone" in result.stderr
    assert "warning: not compared with validation images: no --val" in result.stderr
    assert len(calibration_images_from(out)) == 3
    assert "class" not in result.stdout


def test_without_near_copies_to_leave_out_a_limit_of_0_bits_keeps_what_differs(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calib.txt"
    train = data / "images" / "train"
    run_cli("calibrate-set", train, "--out", out, "--near", 32)
    assert len(lines_of(out)) < 12
    run_cli("calibrate-set", train, "--out", out, "--near", 0, "--overwrite")
    assert len(lines_of(out)) >= 14  # 12, x and y


def test_images_without_a_mask_are_counted_apart(data: Path, tmp_path: Path) -> None:
    (data / "masks" / "train" / "t05.png").unlink()
    result = run_cli("calibrate-set", data, "--val", data, "--out", tmp_path / "calib.txt")
    assert "1 of 12 images have no mask" in result.stderr
    assert "without a mask" in result.stdout


def test_images_of_five_channels_and_grey_ones_are_taken_when_told(tmp_path: Path) -> None:
    folder = tmp_path / "bands"
    folder.mkdir()
    for i in range(3):
        bands = np.concatenate([photo((40, 50), i), photo((40, 50), i + 50)[..., :2]], axis=2)
        np.save(folder / f"{i}.npy", bands)
    out = tmp_path / "calib.txt"
    assert "(40, 50, 5)" in error_of(run_cli("calibrate-set", folder, "--out", out))
    assert run_cli("calibrate-set", folder, "--out", out, "--channels", 5).exit_code == 0
    grey = tmp_path / "grey" / "1.png"
    grey.parent.mkdir()
    Image.fromarray(photo((40, 50), 9)).convert("L").save(grey)
    command = ("calibrate-set", grey, "--out", tmp_path / "grey.txt")
    assert "--convert-images" in error_of(run_cli(*command))
    assert run_cli(*command, "--convert-images").exit_code == 0


def test_the_demos_images_are_chosen_within_seconds_and_cover_every_class(tmp_path: Path) -> None:
    out = tmp_path / "calib.txt"
    result = run_cli("calibrate-set", DEMO, "--val", DEMO, "--out", out, "--count", 12)
    assert result.exit_code == 0, result.stderr
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    shares = {r["name"]: r["chosen_percent"] for r in found["coverage"] if r["kind"] == "class"}
    assert set(shares) == {"0", "1", "2"}
    assert min(shares.values()) > 50
    for part in ("dark", "medium", "bright"):
        assert 3 <= next(r["chosen"] for r in found["coverage"] if r["name"] == part) <= 5


# --- what cannot be used ------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A place for a list; when the test ends nothing may be there."""
    place = tmp_path / "place"
    yield place / "deeper" / "calib.txt"
    assert not place.exists()


@pytest.mark.parametrize("kind", ["empty", "no images", "missing", "text", "model"])
def test_a_source_without_images(kind: str, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "source"
    if kind in ("empty", "no images"):
        source.mkdir()
        (source / ("a.txt" if kind == "no images" else ".hidden.png")).write_text("x")
    elif kind == "text":
        source = tmp_path / "list.txt"
        source.write_text("gone.png\n")
    elif kind == "model":
        source = tmp_path / "model.onnx"
        source.write_bytes(b"x")
    line = error_of(run_cli("calibrate-set", source, "--out", out))
    expected = {
        "missing": "does not exist",
        "text": "1 missing files",
        "model": "expected a folder, a .txt list",
    }
    assert expected.get(kind, "no image directly in folder") in line


def test_an_unreadable_image_stops_it_or_is_left_out_and_named(
    data: Path, tmp_path: Path, out: Path
) -> None:
    bad = data / "images" / "train" / "t06.png"
    bad.write_bytes(bad.read_bytes()[:200])
    assert "t06.png', which cannot be read" in error_of(
        run_cli("calibrate-set", data, "--out", out)
    )
    other = tmp_path / "calib.txt"
    result = run_cli("calibrate-set", data, "--out", other, "--skip-bad")
    assert "left out t06.png: got" in result.stderr
    assert result.exit_code == 0
    assert not any("t06" in line for line in lines_of(other))


def test_an_unreadable_validation_image_stops_it_or_is_named(
    data: Path, tmp_path: Path, out: Path
) -> None:
    (data / "images" / "val" / "v0.png").write_bytes(b"no picture")
    command = ("calibrate-set", data, "--val", data)
    assert "v0.png" in error_of(run_cli(*command, "--out", out))
    result = run_cli(*command, "--out", tmp_path / "calib.txt", "--skip-bad")
    assert "nothing is compared with validation image v0.png: got" in result.stderr


def test_a_folder_of_masks_that_fits_no_image_stops_it(
    data: Path, tmp_path: Path, out: Path
) -> None:
    masks = tmp_path / "마스크"
    masks.mkdir()
    Image.new("L", (64, 48)).save(masks / "other.png")
    line = error_of(run_cli("calibrate-set", data, "--masks", masks, "--out", out))
    assert "마스크' without a mask for any of the 16 images, t00.png the first" in line


def test_a_mask_of_another_size_stops_it(data: Path, out: Path) -> None:
    Image.new("L", (9, 9)).save(data / "masks" / "train" / "t02.png")
    line = error_of(run_cli("calibrate-set", data, "--out", out))
    assert "of 9x9 pixels for an image of 64x48" in line


def test_a_mask_of_colours_stops_it(data: Path, out: Path) -> None:
    Image.new("RGB", (64, 48)).save(data / "masks" / "train" / "t02.png")
    assert "of mode RGB" in error_of(run_cli("calibrate-set", data, "--out", out))


def test_training_images_that_are_all_validation_images_are_refused(data: Path, out: Path) -> None:
    train = data / "images" / "train"
    line = error_of(run_cli("calibrate-set", train, "--val", train, "--out", out))
    assert "16 images, none of which is left to choose from; the first: t00.png: the same" in line


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--count", "0", "x>=1"),
        ("--count", "many", "is not a valid integer"),
        ("--near", "33", "0<=x<=32"),
        ("--seed", "1.5", "is not a valid integer"),
        ("--masks", "gone", "'gone', which is not a folder"),
        ("--val", "gone", "which does not exist"),
        ("--classes", "gone", "gone"),
    ],
)
def test_options_out_of_range(
    option: str, value: str, expected: str, data: Path, out: Path
) -> None:
    assert expected in error_of(run_cli("calibrate-set", data, "--out", out, option, value))


@pytest.mark.parametrize("folder", ["images/train", "masks/train", "images/val"])
def test_a_list_among_images_or_masks_is_refused(folder: str, data: Path) -> None:
    before = sorted(data.rglob("*"))
    place = data / folder / "calib.txt"
    line = error_of(run_cli("calibrate-set", data, "--val", data, "--out", place))
    assert "among the images or masks" in line
    assert sorted(data.rglob("*")) == before


def test_other_places_that_do_not_serve(data: Path, tmp_path: Path) -> None:
    command = ("calibrate-set", data, "--out")
    assert "ends in .txt" in error_of(run_cli(*command, tmp_path / "calib.list"))
    (tmp_path / "file").touch()
    assert "not a folder" in error_of(run_cli(*command, tmp_path / "file" / "calib.txt"))
    (tmp_path / "calib.json").mkdir()
    assert "not a regular file" in error_of(
        run_cli(*command, tmp_path / "calib.txt", "--overwrite")
    )


def test_files_that_are_there_are_replaced_only_when_told(data: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "calib.png"
    sheet.write_bytes(b"mine")
    command = ("calibrate-set", data, "--out", tmp_path / "calib.txt")
    assert "calib.png', which already exists" in error_of(run_cli(*command))
    assert sheet.read_bytes() == b"mine"
    assert run_cli(*command, "--overwrite").exit_code == 0
    assert sheet.read_bytes()[:4] == b"\x89PNG"


def test_the_list_that_is_read_is_not_written_over(data: Path, tmp_path: Path) -> None:
    first = tmp_path / "calib.txt"
    run_cli("calibrate-set", data, "--out", first)
    line = error_of(run_cli("calibrate-set", first, "--out", first, "--overwrite"))
    assert "which would replace calib.txt, which is read" in line
    result = run_cli("calibrate-set", first, "--out", tmp_path / "few.txt", "--count", 3)
    assert "class" in result.stdout  # the masks of a list's images are found too
    assert set(lines_of(tmp_path / "few.txt")) <= set(lines_of(first))


@pytest.mark.parametrize("name", ["names.txt", "names.json"])
def test_the_class_names_are_not_written_over(name: str, data: Path, tmp_path: Path) -> None:
    names = tmp_path / name
    names.write_text('["배경", "벼"]' if name.endswith("json") else "배경\n벼\n", encoding="utf-8")
    before = names.read_bytes()
    command = ("calibrate-set", data, "--classes", names, "--out", tmp_path / "names.txt")
    line = error_of(run_cli(*command, "--overwrite"))
    assert f"which would replace {name}, which is read" in line
    assert [(path.name, path.read_bytes()) for path in tmp_path.glob("names*")] == [(name, before)]


def test_links_in_a_circle_are_one_line(data: Path, out: Path) -> None:
    train = data / "images" / "train"
    (train / "loop.png").symlink_to("loop.png")
    line = error_of(run_cli("calibrate-set", data, "--out", out))
    assert "symbolic links" in line
    (train / "loop.png").unlink()
    (train / "sub").symlink_to(train)
    (train / "gone.png").symlink_to("nowhere.png")
    other = data.parent / "calib.txt"
    assert run_cli("calibrate-set", data, "--out", other).exit_code == 0


# --- nothing is left behind ----------------------------------------------------------------------


def test_ctrl_c_leaves_neither_files_nor_folders(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    for module, name in ((written, "image_from_file"), (written, "_check_list")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupted)
            assert run_cli("calibrate-set", data, "--out", out).exit_code == 130


def test_threads_end_when_reading_is_interrupted(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(500)]
    read: list[Path] = []

    def slow(path: Path) -> None:
        time.sleep(0.002)
        read.append(path)

    class Interrupted(SilentProgress):
        def advance(self, done: int, total: int | None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_files(paths, slow, skip_bad=False, progress=Interrupted())
    assert not any(thread.name.startswith("read images") for thread in threading.enumerate())
    assert len(read) < 100


def write_all(place: SetFiles, *, overwrite: bool = False) -> None:
    with written_together(place, overwrite=overwrite) as hidden:
        for path in hidden.all:
            path.write_text("x")


def test_a_file_that_cannot_take_its_place_leaves_none_of_the_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[Path] = []

    def failing(source: Path, target: Path) -> None:
        if len(replaced) == 2:
            raise OSError(28, "No space left on device")
        replaced.append(target)
        shutil.move(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    place = SetFiles(tmp_path / "new" / "calib.txt")
    with pytest.raises(OutputError, match=r"calib\.txt': No space left on device"):
        write_all(place)
    assert len(replaced) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", range(6))
def test_what_was_there_comes_back_when_not_all_three_take_their_places(
    error: BaseException, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SetFiles(tmp_path / "calib.txt")
    for path in place.all:
        path.write_text(f"old {path.suffix}")
    replace, steps = os.replace, iter(range(99))

    def failing(source: Path, target: Path) -> None:
        now = next(steps)
        if now == step and isinstance(error, OSError):
            raise error
        replace(source, target)
        if now == step:  # Ctrl-C right after it was done
            raise error

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write_all(place, overwrite=True)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts == {f"calib{end}": f"old {end}" for end in (".txt", ".png", ".json")}


def test_replaced_files_leave_nothing_beside_the_new_ones(tmp_path: Path) -> None:
    place = SetFiles(tmp_path / "calib.txt")
    place.list.write_text("old")
    write_all(place, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "calib.json", "calib.png", "calib.txt"
    ]  # fmt: skip
    assert place.list.read_text() == "x"


# --- lists and names ----------------------------------------------------------------------------

NAMES = st.text(
    st.characters(exclude_characters="/\0\n\r", exclude_categories=["Cs"]), min_size=1, max_size=40
)


@settings(max_examples=80, deadline=None)
@given(folder=NAMES, name=NAMES)
def test_any_name_of_a_file_and_a_folder_comes_back_from_the_list(
    folder: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("root")
    images = root / f"{folder}f"
    images.mkdir(parents=True)
    image = images / f"{name}.png"
    image.touch()
    for place in (root, images, root / "deeper" / "still"):
        place.mkdir(parents=True, exist_ok=True)
        path = place / "list.txt"
        path.write_text(f"# list\n{list_line(image, place)}\n", encoding="utf-8", newline="\n")
        (found,) = calibration_images_from(path)
        assert os.path.samefile(found, image)


def test_a_list_behind_a_link_leads_to_the_images(tmp_path: Path) -> None:
    image = save(tmp_path / "a" / "images" / "1.png", 1)
    (tmp_path / "far" / "lists").mkdir(parents=True)
    (tmp_path / "a" / "lists").symlink_to(tmp_path / "far" / "lists")
    path = tmp_path / "a" / "lists" / "list.txt"
    path.write_text(list_line(image, path.parent) + "\n", encoding="utf-8")
    (found,) = calibration_images_from(path)
    assert os.path.samefile(found, image)


@pytest.mark.parametrize("name", ["a\nb.png", "a\rb.png", os.fsdecode(b"\xb3\xed.png")])
def test_a_name_that_no_list_can_hold_stops_it_or_is_left_out(
    name: str, tmp_path: Path, out: Path
) -> None:
    save(tmp_path / "photos" / name, 1)
    save(tmp_path / "photos" / "b.png", 2)
    line = error_of(run_cli("calibrate-set", tmp_path / "photos", "--out", out))
    assert "a path that a list cannot hold" in line
    place = tmp_path / "calib.txt"
    run_cli("calibrate-set", tmp_path / "photos", "--out", place, "--skip-bad")
    assert lines_of(place) == ["photos/b.png"]
    (left_out,) = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))["left_out"]
    assert left_out["reason"] == "unreadable"


def test_odd_names_go_through_the_whole_command(tmp_path: Path) -> None:
    names = ["# 1.png", " 논.png", "-x.png", "a\tb.png", unicodedata.normalize("NFD", "벼.png")]
    for seed, name in enumerate(names):
        save(tmp_path / "#논" / name, seed)
    out = tmp_path / "calib.txt"
    result = run_cli("calibrate-set", tmp_path / "#논", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in calibration_images_from(out)) == sorted(names)


# --- the folders --------------------------------------------------------------------------------


def test_masks_are_found_beside_their_images_complete_or_not(tmp_path: Path) -> None:
    places = [
        "images/train/a.jpg",
        "images/train/b.jpg",
        "masks/training/a.png",
        "masks/training/c.png",
    ]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    images = [tmp_path / place for place in places[:2]]
    assert masks_of_images(images) == {images[0]: tmp_path / places[2]}
    assert masks_of_images(images, masks=tmp_path / "images" / "train") == {}
    assert masks_of_images([Path("/a.png")]) == {}
    with pytest.raises(DatasetError, match="which is not a folder"):
        masks_of_images(images, masks=tmp_path / "gone")


def test_validation_images_need_no_masks(tmp_path: Path) -> None:
    for place in ("images/val/b.jpg", "images/train/a.jpg", "loose/c.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    assert validation_images_from(tmp_path) == (tmp_path / "images" / "val" / "b.jpg",)
    assert validation_images_from(tmp_path / "loose") == (tmp_path / "loose" / "c.png",)
    (tmp_path / "list.txt").write_text("loose/c.png\n")
    assert validation_images_from(tmp_path / "list.txt") == (tmp_path / "loose" / "c.png",)
    with pytest.raises(ImageError, match="no image directly in folder"):
        validation_images_from(tmp_path / "images")


# --- the contact sheet --------------------------------------------------------------------------


def plain(rgb: tuple[int, int, int], hw: tuple[int, int] = (60, 80)) -> np.ndarray[Any, Any]:
    return np.full((*hw, 3), rgb, np.uint8)


def test_thumbnails_stand_in_rows_in_the_order_of_the_list() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    captions = [Caption(f"{i}.png", "dark") for i in range(5)]
    sheet, _ = contact_sheet.contact_sheet("five", captions, map(plain, colours))
    width, height = 160 + 10, 120 + 30 + 10
    assert sheet.size == (4 * width, 2 * height + 25)
    for index, colour in enumerate(colours):
        row, column = divmod(index, 4)
        centre = (column * width + 5 + 80, 25 + row * height + 5 + 60)
        assert sheet.getpixel(centre) == colour
    assert sheet.getpixel((width * 3, height * 2)) == (255, 255, 255)


def test_more_images_than_a_sheet_takes_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "MAX_IMAGES", 3)
    taken: list[int] = []

    def pictures() -> Iterator[np.ndarray[Any, Any]]:
        for index in range(9):
            taken.append(index)
            yield plain((index, 0, 0))

    captions = [Caption(str(i), "") for i in range(9)]
    done: list[tuple[int, int]] = []
    sheet, _ = contact_sheet.contact_sheet(
        "nine", captions, pictures(), on_picture=lambda *at: done.append(at)
    )
    assert sheet.size[1] == 120 + 30 + 10 + 25
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert taken == [0, 1, 2]


@pytest.mark.parametrize(
    ("channels", "expected"), [(1, (9, 9, 9)), (2, (9, 9, 9)), (5, (9, 10, 11))]
)
def test_a_thumbnail_shows_the_first_channels(
    channels: int, expected: tuple[int, int, int]
) -> None:
    picture = np.full((10, 20, channels), 9, np.uint8) + np.arange(channels, dtype=np.uint8)
    small = contact_sheet.thumbnail(picture)
    assert small.size == (20, 10)
    assert small.getpixel((3, 3)) == expected


def test_a_large_photo_fits_into_its_place() -> None:
    assert contact_sheet.thumbnail(plain((1, 2, 3), (3000, 1000))).size == (40, 120)


def test_korean_is_drawn_where_a_font_has_it() -> None:
    letters = lettering.lettering_for(["논 벼.jpg"], 12)
    if letters.missing:
        pytest.skip("no font of this computer has Korean")
    drawn = {bytes(letters.font.getmask(c)) for c in "논벼\U0010ffff"}
    assert len(drawn) == 3
    assert letters.drawable(unicodedata.normalize("NFD", "논 벼.jpg")) == "논 벼.jpg"


def test_without_such_a_font_names_are_escaped_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lettering, "FONT_FILES", ())
    letters = lettering.lettering_for(["논 a.jpg"], 12)
    assert letters.drawable("논 a.jpg") == "\\ub17c a.jpg"
    save(tmp_path / "photos" / "논.png", 1)
    result = run_cli("calibrate-set", tmp_path / "photos", "--out", tmp_path / "calib.txt")
    assert "warning: no font here has '논': escaped in the contact sheet" in result.stderr
    assert "fonts-noto-cjk" in result.stderr


SHEET_OF_KOREAN = """
import sys
import numpy as np
from calibration.image_set.contact_sheet import Caption, contact_sheet
caption = Caption("\\ub17c \\udceb\\udcb2\\udcbc \\udcff.jpg", "\\ubd80\\uc9c4")
sheet, letters = contact_sheet("\\ub3c4\\ubcf5", [caption], [np.zeros((9, 9, 3), "u1")])
print(sys.getfilesystemencoding())
print(ascii(letters.drawable(caption.name)), sheet.tobytes().hex())
"""


def test_an_ascii_locale_draws_what_others_draw() -> None:
    """Class names of any script, and file names as Python has them where it cannot decode them."""
    shown = {}
    for changes in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}):
        done = subprocess.run(
            [sys.executable, "-c", SHEET_OF_KOREAN],
            env=environment(PYTHONCOERCECLOCALE="0", **changes),
            capture_output=True,
            encoding="ascii",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        encoding, drawn = done.stdout.splitlines()
        shown[encoding] = drawn
    assert shown["utf-8"] == shown["ascii"]
    letters = lettering.lettering_for(["\udceb\udcb2\udcbc \udcff"], 12)
    assert letters.drawable("\udceb\udcb2\udcbc \udcff") in ("벼 \\xff", "\\ubcbc \\xff")


def test_long_names_lose_their_middle() -> None:
    letters = lettering.lettering_for(["abc"], 12)
    name = "DJI_20250801_field_of_the_far_north_0001.jpg"
    shown = letters.fitted(name, 120)
    assert letters.font.getlength(shown) <= 120
    start, end = shown.split("...")
    assert name.startswith(start)
    assert name.endswith(end)
    assert min(len(start), len(end)) >= 4
    assert letters.fitted("a.jpg", 120) == "a.jpg"


# --- memory -------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 1, (480, 640))

    def peak_bytes(count: int) -> int:
        tracemalloc.start()
        read_files(
            [path] * count,
            lambda file: facts_from_file(file, reading=Reading()),
            skip_bad=False,
            progress=SilentProgress(),
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(2)
    assert peak_bytes(40) < 40 * 480 * 640 * 3 / 4  # some 5 MB, of 37 MB of pixels
