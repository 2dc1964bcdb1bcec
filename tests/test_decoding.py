"""Damaged, huge and mislabelled files: an image or one clear line, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from picture_files import picture, png, saved

from engines.errors import ImageError, MissingPackageError
from engines.images import image_files_from, image_from_file, mask_from_file


def encoded(folder: Path) -> list[Path]:
    image = PIL.Image.fromarray(picture())
    return [
        saved(folder / "whole.jpg", image),
        saved(folder / "whole.png", image),
        saved(folder / "whole.bmp", image),
        saved(folder / "whole.tif", image),
        saved(folder / "lzw.tif", image, compression="tiff_lzw"),
        saved(folder / "whole.webp", image, lossless=True),
    ]


def test_a_file_cut_short_is_refused_unless_all_pixels_are_there(tmp_path: Path) -> None:
    for path in encoded(tmp_path):
        whole, data = image_from_file(path), path.read_bytes()
        refused = 0
        for length in range(1, len(data), 37):
            path.write_bytes(data[:length])
            try:
                image = image_from_file(path)
            except ImageError:
                refused += 1
            else:
                assert (image == whole).all(), f"{path.name}, first {length} bytes"
        assert refused > 0.8 * len(range(1, len(data), 37)), path.name


def test_altered_bytes_give_an_image_or_an_image_error_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for path in encoded(tmp_path):
        data = path.read_bytes()
        for _ in range(60):
            altered = bytearray(data)
            for position in rng.integers(0, min(len(data), 300), 3):
                altered[position] = rng.integers(0, 256)
            path.write_bytes(altered)
            with contextlib.suppress(ImageError):
                assert image_from_file(path, convert=True).shape[2] == 3


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.npy", "a.txt.jpg"])
def test_a_text_file_named_like_an_image_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("not a picture")
    with pytest.raises(ImageError, match=rf"{name}', which cannot be read \(.*\); expected a"):
        image_from_file(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.npy", "a.txt"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    for read in (image_from_file, mask_from_file, image_files_from):
        with pytest.raises(ImageError, match=f"{name}', an empty file; expected"):
            read(tmp_path / name)


def test_a_folder_a_missing_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (image_from_file, mask_from_file):
        with pytest.raises(ImageError, match="which is a folder"):
            read(tmp_path)
        with pytest.raises(ImageError, match="which does not exist"):
            read(tmp_path / "gone.png")
        with pytest.raises(ImageError, match="which is not a regular file"):
            read(tmp_path / "pipe.png")


def test_a_format_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(picture()), format="GIF")
    with pytest.raises(
        ImageError, match=r"cannot be read \(not one of the formats\); .* WEBP file"
    ):
        image_from_file(path)


@pytest.mark.parametrize(
    ("side", "size"), [(17_321, "of 17321x17321 pixels"), (30_000, "with far more pixels")]
)
def test_a_few_bytes_that_promise_over_300_million_pixels_are_refused(
    tmp_path: Path, side: int, size: str
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 8, 2, b"\0" * 1000))
    with pytest.raises(ImageError, match=f"{size}; expected at most 300 million pixels"):
        image_from_file(path)


def test_a_header_below_the_limit_without_its_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.png"
    path.write_bytes(png(1_000, 100_000, 1, 0, b"\0" * 1000))
    with pytest.raises(ImageError, match="truncated"):
        mask_from_file(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "lzw.tif"])
def test_images_above_pillows_own_limits_are_read_without_warning_and_the_limit_stays(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    path = saved(tmp_path / name, PIL.Image.fromarray(picture()), **options)
    for limit, refusal in (
        (24 * 36 - 1, PIL.Image.DecompressionBombWarning),
        (24 * 36 // 3, PIL.Image.DecompressionBombError),
    ):
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(refusal):
            PIL.Image.open(path)
        assert image_from_file(path).shape == (24, 36, 3)
        assert limit == PIL.Image.MAX_IMAGE_PIXELS


def test_pillows_limit_is_put_back_after_an_error(tmp_path: Path) -> None:
    before = PIL.Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(ImageError, match="cannot be read"):
        image_from_file(tmp_path / "a.png")
    assert before == PIL.Image.MAX_IMAGE_PIXELS


def test_a_warning_about_metadata_does_not_reach_the_user(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", PIL.Image.fromarray(picture()), tiffinfo={274: 1})
    one, two = struct.pack("<HHI", 274, 3, 1), struct.pack("<HHI", 274, 3, 2)
    assert one in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(one, two))
    with pytest.warns(UserWarning, match="too many entries"), PIL.Image.open(path) as image:
        image.load()
    assert (image_from_file(path) == picture()).all()


def test_several_threads_read_at_once_and_leave_everything_as_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", PIL.Image.fromarray(picture()))
    expected, before = image_from_file(path), PIL.Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(4) as pool:
        for image in pool.map(image_from_file, [path] * 50):
            assert (image == expected).all()
    assert before == PIL.Image.MAX_IMAGE_PIXELS


def test_without_pillow_and_opencv_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(picture()))
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingPackageError, match=r"'Pillow' .* pip install 'riceseg\[onnx\]'"):
        image_from_file(path)
