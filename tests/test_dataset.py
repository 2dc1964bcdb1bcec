"""Folder layouts: which mask goes with which image, and what is said when one is alone."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from engines.dataset import Pair, calibration_images_from, pairs_from_folder
from engines.errors import DatasetError, ImageError


def touched(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def names(pairs: tuple[Pair, ...], root: Path) -> list[tuple[str, str]]:
    return [
        (pair.image.relative_to(root).as_posix(), pair.mask.relative_to(root).as_posix())
        for pair in pairs
    ]


@pytest.mark.parametrize("mask_root", ["masks", "annotations", "labels"])
@pytest.mark.parametrize("part", ["validation", "val"])
def test_a_dataset_with_parts_gives_its_validation_part(
    tmp_path: Path, mask_root: str, part: str
) -> None:
    root = touched(
        tmp_path / "벼 자료",
        f"images/{part}/b.jpg",
        f"images/{part}/a.JPG",
        f"{mask_root}/{part}/a.png",
        f"{mask_root}/{part}/b.PNG",
        "images/train/c.jpg",
        f"{mask_root}/train/c.png",
        "readme.txt",
        f"images/{part}/Thumbs.db",
        f"{mask_root}/{part}/.DS_Store",
    )
    assert names(pairs_from_folder(root), root) == [
        (f"images/{part}/a.JPG", f"{mask_root}/{part}/a.png"),
        (f"images/{part}/b.jpg", f"{mask_root}/{part}/b.PNG"),
    ]


@pytest.mark.parametrize("stored", ["calibration", "train", "training"])
def test_the_calibration_part_may_be_called_train(tmp_path: Path, stored: str) -> None:
    root = touched(
        tmp_path,
        f"images/{stored}/a.jpg",
        f"masks/{stored}/a.png",
        "images/val/b.jpg",
        "masks/val/b.png",
    )
    pairs = pairs_from_folder(root, part="calibration")
    assert names(pairs, root) == [(f"images/{stored}/a.jpg", f"masks/{stored}/a.png")]


def test_a_part_of_its_own_name_comes_before_one_that_may_stand_for_it(tmp_path: Path) -> None:
    root = touched(
        tmp_path,
        *(f"images/{part}/{part}.jpg" for part in ("calibration", "train", "validation", "val")),
        *(f"masks/{part}/{part}.png" for part in ("calibration", "train", "validation", "val")),
    )
    for part in ("calibration", "train", "validation", "val"):
        (pair,) = pairs_from_folder(root, part=part)
        assert (pair.image.name, pair.mask.name) == (f"{part}.jpg", f"{part}.png")


def test_masks_of_a_part_may_use_the_other_word(tmp_path: Path) -> None:
    root = touched(tmp_path, "images/validation/a.jpg", "annotations/val/a.png")
    assert names(pairs_from_folder(root), root) == [
        ("images/validation/a.jpg", "annotations/val/a.png")
    ]


def test_any_other_part_is_found_by_its_name(tmp_path: Path) -> None:
    root = touched(tmp_path, "images/test/a.jpg", "masks/test/a.png")
    assert len(pairs_from_folder(root, part="test")) == 1


def test_mmsegmentations_layout(tmp_path: Path) -> None:
    root = touched(tmp_path, "img_dir/val/a.jpg", "ann_dir/val/a.png", "img_dir/train/b.jpg")
    assert names(pairs_from_folder(root), root) == [("img_dir/val/a.jpg", "ann_dir/val/a.png")]


def test_images_that_are_not_divided_serve_every_part(tmp_path: Path) -> None:
    root = touched(tmp_path, "images/a.npy", "masks/a.tif")
    for part in ("validation", "calibration"):
        assert names(pairs_from_folder(root, part=part), root) == [("images/a.npy", "masks/a.tif")]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/val/a.jpg", "masks/val/a.png"),
        ("images/a.jpg", "labels/a.png"),
        ("img_dir/field 3/day 2/a.jpg", "ann_dir/field 3/day 2/a.bmp"),
        ("images/2024/images/a.jpg", "images/2024/masks/a.png"),
        ("images/2024/a.jpg", "annotations/2024/a.png"),
    ],
)
def test_a_folder_of_images_finds_the_masks_beside_it(
    tmp_path: Path, image: str, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = touched(tmp_path, image, mask)
    expected = [(image, mask)]
    folder = (root / image).parent
    assert names(pairs_from_folder(folder), root) == expected
    assert names(pairs_from_folder(folder, part="calibration"), root) == expected
    monkeypatch.chdir(folder)
    (pair,) = pairs_from_folder(".")
    assert pair.image.samefile(root / image)
    assert pair.mask.samefile(root / mask)


def test_masks_may_lie_anywhere_when_they_are_named(tmp_path: Path) -> None:
    root = touched(tmp_path, "photos/a.jpg", "elsewhere/a.png", "set/images/val/a.jpg")
    masks = os.fspath(root / "elsewhere")
    assert names(pairs_from_folder(root / "photos", masks=masks), root) == [
        ("photos/a.jpg", "elsewhere/a.png")
    ]
    assert names(pairs_from_folder(root / "set", masks=masks), root) == [
        ("set/images/val/a.jpg", "elsewhere/a.png")
    ]


def test_korean_names_match_whichever_system_stored_them(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "벼 생육 01")
    apart = unicodedata.normalize("NFD", composed)
    assert composed != apart
    root = touched(tmp_path, f"images/{apart}.jpg", f"masks/{composed}.png")
    assert len(pairs_from_folder(root)) == 1


def test_a_name_with_dots_is_matched_but_for_its_last_suffix(tmp_path: Path) -> None:
    root = touched(tmp_path, "images/a.1.jpg", "images/a.2.jpg", "masks/a.1.png", "masks/a.2.png")
    assert [pair.mask.name for pair in pairs_from_folder(root)] == ["a.1.png", "a.2.png"]


def test_images_without_a_mask_are_counted_and_three_are_named(tmp_path: Path) -> None:
    root = touched(tmp_path, *(f"images/val/{n}.jpg" for n in range(9)), "masks/val/0.png")
    with pytest.raises(
        DatasetError,
        match=r"8 images without a mask in '.*val' \('1.jpg', '2.jpg', '3.jpg', \.\.\.\); expected",
    ):
        pairs_from_folder(root)


def test_masks_without_an_image_are_named_beside_images_without_a_mask(tmp_path: Path) -> None:
    root = touched(tmp_path, "images/a.jpg", "images/b.jpg", "masks/a.png", "masks/c.png")
    with pytest.raises(
        DatasetError,
        match=r"1 images without a mask in .*\('b.jpg'\) and 1 masks without an image.*\('c.png'\)",
    ):
        pairs_from_folder(root)


def test_masks_without_an_image_are_refused_too(tmp_path: Path) -> None:
    root = touched(tmp_path, "images/a.jpg", "masks/a.png", "masks/b.png")
    with pytest.raises(
        DatasetError, match=r"got 1 masks without an image in '.*' \('b.png'\); exp"
    ):
        pairs_from_folder(root)


@pytest.mark.parametrize("twice", ["images/a.png", "masks/a.tif"])
def test_two_files_of_one_name_are_refused(tmp_path: Path, twice: str) -> None:
    root = touched(tmp_path, "images/a.jpg", "masks/a.png", twice)
    with pytest.raises(DatasetError, match=r"same name but for the suffix in .*'a\.\w+', 'a\.\w+'"):
        pairs_from_folder(root)


def test_a_jpeg_is_not_taken_for_a_mask(tmp_path: Path) -> None:
    root = touched(tmp_path, "images/a.jpg", "masks/a.jpg")
    with pytest.raises(DatasetError, match="1 images without a mask"):
        pairs_from_folder(root)


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "masks/val/a.png")
    (tmp_path / "images/val").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no image directly in '.*val'"):
        pairs_from_folder(tmp_path)


def test_a_part_that_is_not_there_is_refused_with_the_layouts(tmp_path: Path) -> None:
    touched(tmp_path, "images/train/a.jpg", "masks/train/a.png")
    with pytest.raises(
        DatasetError, match=r"'validation' was not found; expected .*images/ \+ masks/.*or val"
    ):
        pairs_from_folder(tmp_path)


def test_images_without_a_folder_of_masks_are_refused(tmp_path: Path) -> None:
    touched(tmp_path, "images/val/a.jpg", "photos/a.jpg")
    with pytest.raises(DatasetError, match=r"'val' has no masks; .*--val-masks"):
        pairs_from_folder(tmp_path)
    with pytest.raises(DatasetError, match=r"photos', in which 'validation' was not found"):
        pairs_from_folder(tmp_path / "photos")


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "images/a.jpg", "masks/a.png")
    with pytest.raises(DatasetError, match="gone', which is not a folder"):
        pairs_from_folder(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"a\.jpg', which is not a folder"):
        pairs_from_folder(tmp_path / "images/a.jpg")
    with pytest.raises(DatasetError, match="gone', which is not a folder"):
        pairs_from_folder(tmp_path, masks=tmp_path / "gone")


@pytest.mark.parametrize("part", ["images/calibration", "images/train", "img_dir/train"])
def test_calibration_takes_a_datasets_training_images_and_needs_no_masks(
    tmp_path: Path, part: str
) -> None:
    root = touched(tmp_path, f"{part}/b.jpg", f"{part}/a.png", "images/val/c.jpg", "cover.jpg")
    assert calibration_images_from(root) == (root / part / "a.png", root / part / "b.jpg")


def test_calibration_takes_a_folder_a_list_one_image_or_an_undivided_dataset(
    tmp_path: Path,
) -> None:
    touched(tmp_path, "photos/a.jpg", "photos/b.jpg", "set/images/c.jpg")
    (tmp_path / "list.txt").write_text("photos/b.jpg\nset/images/c.jpg\n")
    photos = tmp_path / "photos"
    (photos / "a.jpg").write_bytes(b"1")
    assert calibration_images_from(photos) == (photos / "a.jpg", photos / "b.jpg")
    assert calibration_images_from(photos / "a.jpg") == (photos / "a.jpg",)
    listed = (photos / "b.jpg", tmp_path / "set/images/c.jpg")
    assert calibration_images_from(tmp_path / "list.txt") == listed
    assert calibration_images_from(os.fspath(tmp_path / "set")) == (tmp_path / "set/images/c.jpg",)


def test_calibration_never_falls_back_to_the_validation_images(tmp_path: Path) -> None:
    touched(tmp_path, "images/val/a.jpg", "masks/val/a.png")
    with pytest.raises(
        DatasetError, match=r"without images to calibrate on; .*not those of the val"
    ):
        calibration_images_from(tmp_path)


def test_calibration_on_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no image directly in folder"):
        calibration_images_from(tmp_path)
    with pytest.raises(ImageError, match="which does not exist"):
        calibration_images_from(tmp_path / "gone")
