"""Folders, lists and hashes of image files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import PIL.Image
import pytest
from picture_files import picture, saved

from engines.errors import ImageError, UserError
from engines.images import image_files_from, sha256_of_file


def test_a_folder_gives_its_images_by_name_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "논 사진"
    (folder / "sub.png").mkdir(parents=True)
    names = ["b.JPG", "가 나.png", "a.tiff", "c.npy", "a.webp", "d.jpeg", "e.bmp", "f.tif"]
    for name in [*names, "notes.txt", "model.onnx", ".hidden.png", "._b.jpg", "png"]:
        (folder / name).touch()
    found = image_files_from(folder)
    assert [file.name for file in found] == sorted(names)
    assert {file.parent for file in found} == {folder}


def test_one_image_gives_itself(tmp_path: Path) -> None:
    path = saved(tmp_path / "a b.PNG", PIL.Image.fromarray(picture()))
    assert image_files_from(str(path)) == (path,)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_list_gives_its_paths_in_order_relative_to_itself(
    tmp_path: Path, encoding: str, newline: str
) -> None:
    (tmp_path / "사진 1").mkdir()
    files = [tmp_path / "사진 1" / "논 #2.jpg", tmp_path / "b.png", tmp_path / "a.png"]
    for file in files:
        file.touch()
    lines = ["사진 1/논 #2.jpg", "", "  # a comment", "  b.png  ", str(files[2])]
    (tmp_path / "list.txt").write_bytes(newline.join(lines).encode(encoding))
    assert image_files_from(tmp_path / "list.txt") == tuple(files)


def test_a_list_with_missing_files_names_the_first_and_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "list.txt").write_text("# photos\na.png\nb.png\nc.png\n")
    with pytest.raises(ImageError, match=r"2 missing files, the first in line 3: '.*b\.png'"):
        image_files_from(tmp_path / "list.txt")


def test_a_list_of_nothing_and_one_in_another_encoding_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# nothing\n\n")
    with pytest.raises(ImageError, match="without any path"):
        image_files_from(path)
    path.write_bytes("논.png".encode("cp949"))
    with pytest.raises(ImageError, match=r"expected text in UTF-8 .*; do this: save the list as"):
        image_files_from(path)


def test_no_image_a_missing_path_and_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no image directly in folder .*expected files that end"):
        image_files_from(tmp_path)
    with pytest.raises(ImageError, match="which does not exist"):
        image_files_from(tmp_path / "gone")
    (tmp_path / "model.onnx").write_bytes(b"1")
    with pytest.raises(ImageError, match=r"model\.onnx'; expected a folder, a \.txt list or"):
        image_files_from(tmp_path / "model.onnx")


def test_sha256_is_that_of_the_standards_example_and_of_a_large_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    data = bytes(range(256)) * 10_000
    (tmp_path / "large").write_bytes(data)
    assert sha256_of_file(tmp_path / "large") == hashlib.sha256(data).hexdigest()


def test_sha256_of_what_cannot_be_read_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone': No such file or directory; expected a file"):
        sha256_of_file(tmp_path / "gone")
    with pytest.raises(UserError, match="Is a directory"):
        sha256_of_file(tmp_path)
