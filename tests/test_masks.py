"""A mask gives the class indices that its file stores."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from picture_files import picture, png, saved

from engines.errors import DatasetError, ImageError
from engines.images import mask_from_file


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_a_grey_mask_gives_its_indices(tmp_path: Path, name: str) -> None:
    labels = np.array([[0, 1, 2], [5, 254, 255]], np.uint8)
    mask = mask_from_file(saved(tmp_path / name, PIL.Image.fromarray(labels)))
    assert (mask == labels).all()
    assert mask.dtype == np.uint8
    assert mask.flags.c_contiguous
    assert mask.flags.writeable


@pytest.mark.parametrize("options", [{}, {"transparency": 0}])
def test_a_palette_mask_gives_its_indices_and_not_its_colours(
    tmp_path: Path, options: dict[str, object]
) -> None:
    labels = np.array([[0, 1, 2], [5, 200, 255]], np.uint8)
    image = PIL.Image.fromarray(labels)
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    path = saved(tmp_path / "a.png", image, **options)
    with PIL.Image.open(path) as reopened:
        assert reopened.mode == "P"
    assert (mask_from_file(path) == labels).all()


@pytest.mark.parametrize("colour", [0, 3])
@pytest.mark.parametrize(
    ("bits", "row", "indices"),
    [
        (1, b"\0\xb0", [1, 0, 1, 1]),
        (2, b"\0\x1b", [0, 1, 2, 3]),
        (4, b"\0\x01\x2f", [0, 1, 2, 15]),
    ],
)
def test_indices_of_few_bits_stay_as_they_are_stored(
    tmp_path: Path, bits: int, row: bytes, indices: list[int], colour: int
) -> None:
    data = png(4, 1, bits, colour, row)
    if colour == 3:
        palette = b"PLTE" + bytes(range(3 * 2**bits))
        chunk = struct.pack(">I", 3 * 2**bits) + palette + struct.pack(">I", zlib.crc32(palette))
        data = data[:33] + chunk + data[33:]
    (tmp_path / "a.png").write_bytes(data)
    assert mask_from_file(tmp_path / "a.png").tolist() == [indices]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_mask_of_more_bits_is_read_if_no_value_needs_them(
    tmp_path: Path, dtype: type[np.generic]
) -> None:
    labels = np.array([[0, 7], [254, 255]], dtype)
    path = saved(tmp_path / "a.tif", PIL.Image.fromarray(labels))
    assert mask_from_file(path).tolist() == [[0, 7], [254, 255]]
    labels[0, 1] = 256
    path = saved(tmp_path / "a.tif", PIL.Image.fromarray(labels))
    with pytest.raises(DatasetError, match="with values from 0 to 256; expected class indices"):
        mask_from_file(path)


def test_a_mask_with_negative_values_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", PIL.Image.fromarray(np.array([[-1, 5]], np.int32)))
    with pytest.raises(DatasetError, match="with values from -1 to 5"):
        mask_from_file(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F"])
def test_a_mask_of_colours_or_fractions_is_refused(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / ("a.tif" if mode == "F" else "a.png"), PIL.Image.new(mode, (4, 4)))
    with pytest.raises(DatasetError, match=f"mask '.*' of mode {mode}; expected one channel"):
        mask_from_file(path)


def test_a_jpeg_is_no_mask_because_it_alters_indices(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(picture()[:, :, 0]), format="JPEG")
    with pytest.raises(ImageError, match="expected a whole PNG, TIFF or BMP file"):
        mask_from_file(path)
