"""Images of one, four or five channels come as TIFFs with a page for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from band_files import Band, measured, tags_of, tiff_of_parts
from picture_files import picture, saved

from engines.errors import ImageError
from engines.images import image_from_file


def pages(count: int) -> list[Band]:
    return [measured((24, 36), "uint8", seed=index) for index in range(count)]


def saved_by_pillow(path: Path, planes: list[Band], **options: Any) -> Path:
    first, *others = [PIL.Image.fromarray(plane) for plane in planes]
    return saved(path, first, save_all=True, append_images=others, **options)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_each_page_is_a_channel(tmp_path: Path, count: int, compression: str) -> None:
    path = saved_by_pillow(tmp_path / "a.tif", pages(count), compression=compression)
    image = image_from_file(path, channels=count)
    assert np.array_equal(image, np.stack(pages(count), axis=2))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


def test_what_opencv_writes_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "벼.TIFF"
    assert cv2.imwritemulti(str(path), pages(5))
    assert np.array_equal(image_from_file(path, channels=5), np.stack(pages(5), axis=2))


@pytest.mark.parametrize("count", [1, 4, 6])
def test_another_number_of_pages_is_refused(tmp_path: Path, count: int) -> None:
    path = saved_by_pillow(tmp_path / "a.tif", pages(count))
    message = f"with {count} pages of 1 channels; expected 5 pages of 8-bit grey, one for each"
    with pytest.raises(ImageError, match=message):
        image_from_file(path, channels=5)


def test_channels_inside_a_page_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", PIL.Image.fromarray(picture(channels=4)))
    with pytest.raises(ImageError, match="with 1 pages of 4 channels; expected 4 pages of 8-bit"):
        image_from_file(path, channels=4)


def test_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    planes = [measured((24, 36), "uint8"), measured((24, 35), "uint8")]
    with pytest.raises(ImageError, match="with pages of 35x24 and 36x24 uint8; expected 2 pages"):
        image_from_file(saved_by_pillow(tmp_path / "a.tif", planes), channels=2)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_pages_that_are_no_composite_are_refused(tmp_path: Path, dtype: str) -> None:
    planes = [measured((24, 36), dtype)] * 2
    message = f"with pages of 36x24 {dtype}; expected 2 pages of 8-bit grey.*riceseg prepare"
    with pytest.raises(ImageError, match=message):
        image_from_file(saved_by_pillow(tmp_path / "a.tif", planes), channels=2)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = saved_by_pillow(tmp_path / "a.tif", pages(4))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError, match="which cannot be read"):
        image_from_file(path, channels=4)


def test_many_large_pages_of_a_small_file_are_refused_before_they_are_made(tmp_path: Path) -> None:
    plane = measured((4, 4), "uint8")
    tags = dict(tags_of(plane, 8))
    tags[256] = tags[257] = (4, (17_000).to_bytes(4, "little"))  # 289 million pixels
    tags[278] = (4, (17_000).to_bytes(4, "little"))
    tags[259] = (3, b"\x08\x00")  # compressed, so that a short file may be right
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_of_parts(plane.tobytes(), [sorted(tags.items())] * 5))
    with pytest.raises(ImageError, match="5 pages of 17000x17000 are too many pixels"):
        image_from_file(path, channels=5)


def test_a_tiff_for_three_channels_is_read_as_before(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", PIL.Image.fromarray(picture()))
    assert np.array_equal(image_from_file(path), picture())
