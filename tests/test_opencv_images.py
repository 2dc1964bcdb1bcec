"""Without Pillow, OpenCV reads the same pixels, and what it would change in silence is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from picture_files import picture, png, saved

from engines.errors import DatasetError, ImageError
from engines.images import image_from_file, mask_from_file


@pytest.fixture
def without_pillow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it when the test's files are written."""
    return lambda: monkeypatch.setitem(sys.modules, "PIL", None)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.jpg", "벼.jpg", "palette.png", "a.npy"])
def test_an_image_is_what_pillow_reads(
    tmp_path: Path, name: str, without_pillow: Callable[[], None]
) -> None:
    image = PIL.Image.fromarray(picture())
    if name == "a.npy":
        np.save(tmp_path / name, picture())
    else:
        saved(tmp_path / name, image.quantize(16) if "palette" in name else image)
    expected = image_from_file(tmp_path / name)
    without_pillow()
    found = image_from_file(tmp_path / name)
    assert np.abs(found.astype(int) - expected).max() <= (1 if "jpg" in name else 0)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(
    tmp_path: Path, orientation: int, without_pillow: Callable[[], None]
) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", PIL.Image.fromarray(picture()), exif=exif)
    expected = image_from_file(path)
    without_pillow()
    assert np.abs(image_from_file(path).astype(int) - expected).max() <= 1


def test_a_preview_inside_a_photo_is_not_taken_for_it(
    tmp_path: Path, without_pillow: Callable[[], None]
) -> None:
    small = PIL.Image.fromarray(picture(8, 8))
    preview = saved(tmp_path / "small.jpg", small).read_bytes()
    path = saved(tmp_path / "a.jpg", PIL.Image.fromarray(picture()))
    whole = path.read_bytes()
    block = b"Exif\0\0" + preview
    whole = whole[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + whole[2:]
    path.write_bytes(whole)
    without_pillow()
    assert image_from_file(path).shape == (24, 36, 3)
    path.write_bytes(whole[:-20])
    with pytest.raises(ImageError, match=r"a\.jpg.*it is truncated"):
        image_from_file(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(
    tmp_path: Path, suffix: str, share: float, without_pillow: Callable[[], None]
) -> None:
    path = saved(tmp_path / f"a.{suffix}", PIL.Image.fromarray(picture(60, 80)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    without_pillow()
    with pytest.raises(ImageError, match=r"which cannot be read|none of PNG"):
        image_from_file(path)


def test_what_would_lose_something_is_refused_and_converted_on_request(
    tmp_path: Path, without_pillow: Callable[[], None]
) -> None:
    rgb = PIL.Image.fromarray(picture())
    deep = np.random.default_rng(0).integers(0, 65536, (24, 36, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    files = {
        "grey": saved(tmp_path / "l.png", rgb.convert("L")),
        "grey ": saved(tmp_path / "l.jpg", rgb.convert("L")),
        "RGB with alpha": saved(
            tmp_path / "rgba.png", PIL.Image.fromarray(picture(channels=4), "RGBA")
        ),
        "palette with transparency": saved(tmp_path / "t.png", rgb.quantize(16), transparency=0),
        "16-bit RGB": tmp_path / "deep.png",
    }
    expected = {path: image_from_file(path, convert=True) for path in files.values()}
    without_pillow()
    for words, path in files.items():
        with pytest.raises(ImageError, match=f", {words.strip()}; expected 8-bit RGB"):
            image_from_file(path)
        found = image_from_file(path, convert=True)
        assert np.abs(found.astype(int) - expected[path]).max() <= 1, path


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "cmyk.jpg"])
def test_what_opencv_reads_in_its_own_way_needs_pillow(
    tmp_path: Path, name: str, without_pillow: Callable[[], None]
) -> None:
    image = PIL.Image.fromarray(picture())
    path = saved(tmp_path / name, image.convert("CMYK") if "cmyk" in name else image)
    without_pillow()
    with pytest.raises(ImageError, match="do this: install Pillow"):
        image_from_file(path, convert=True)


@pytest.mark.parametrize(("bits", "row"), [(1, 0b01100000), (2, 0b00011011), (4, 0x2F), (8, 7)])
def test_a_mask_of_few_bits_keeps_its_indices(
    tmp_path: Path, bits: int, row: int, without_pillow: Callable[[], None]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(8 // bits, 1, bits, 0, bytes([0, row])))
    expected = {1: [0, 1, 1, 0, 0, 0, 0, 0], 2: [0, 1, 2, 3], 4: [2, 15], 8: [7]}[bits]
    assert mask_from_file(path).tolist() == [expected]
    without_pillow()
    assert mask_from_file(path).tolist() == [expected]


def test_a_mask_of_16_bits_is_read_where_no_value_is_above_255(
    tmp_path: Path, without_pillow: Callable[[], None]
) -> None:
    cv2.imwrite(str(tmp_path / "good.png"), np.array([[0, 255]], np.uint16))
    cv2.imwrite(str(tmp_path / "bad.png"), np.array([[0, 256]], np.uint16))
    without_pillow()
    assert mask_from_file(tmp_path / "good.png").tolist() == [[0, 255]]
    with pytest.raises(DatasetError, match=r"bad\.png' with values up to 256"):
        mask_from_file(tmp_path / "bad.png")


def test_a_mask_whose_indices_opencv_would_lose_needs_pillow(
    tmp_path: Path, without_pillow: Callable[[], None]
) -> None:
    mask = PIL.Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    palette = mask.convert("P")
    paths = [saved(tmp_path / "p.png", palette), saved(tmp_path / "m.bmp", mask)]
    rgb = saved(tmp_path / "rgb.png", PIL.Image.fromarray(picture()))
    without_pillow()
    for path in paths:
        with pytest.raises(ImageError, match=r"as a mask; .* install Pillow"):
            mask_from_file(path)
    with pytest.raises(DatasetError, match="of RGB; expected one channel"):
        mask_from_file(rgb)


def test_an_image_beyond_the_limit_is_not_decoded(
    tmp_path: Path, without_pillow: Callable[[], None]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(20_000, 20_000, 8, 2, b""))
    without_pillow()
    with pytest.raises(ImageError, match="of 20000x20000 pixels"):
        image_from_file(path)
