"""Bands are read as rasterio wrote them; a TIFF that lies is refused before it costs anything."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import rasterio
from band_files import (
    Band,
    Value,
    doubles,
    longs,
    measured,
    saved_band,
    shorts,
    tags_of,
    text,
    tiff,
    tiff_of_parts,
)

from engines.bands.tiff import BandBytes, read_band
from engines.errors import ImageError, MissingPackageError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

TILES = {"tiled": True, "blockxsize": 16, "blockysize": 32}
LAYOUTS: list[dict[str, Any]] = [
    {},
    TILES,
    {"BIGTIFF": "YES"},
    {"ENDIANNESS": "BIG"},
    {"ENDIANNESS": "BIG", **TILES},
    {"compress": "deflate"},
    {"compress": "lzw", "predictor": 2},
    {"compress": "lzw", **TILES},
    {"compress": "packbits"},
]


def by_rasterio(path: Path, *bands: Band, **options: Any) -> Path:
    height, width = bands[0].shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=len(bands),
        dtype=bands[0].dtype, **options,
    ) as file:  # fmt: skip
        for number, band in enumerate(bands, start=1):
            file.write(band, number)
    return path


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_band_is_read_as_it_was_written(
    tmp_path: Path, dtype: str, options: dict[str, Any]
) -> None:
    band = measured(dtype=dtype)
    read = read_band(by_rasterio(tmp_path / "a.tif", band, **options))
    assert np.array_equal(read, band)
    assert read.dtype == np.dtype(dtype)
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    assert read.flags.writeable


@pytest.mark.parametrize("dtype", ["float32", "uint16", "int16", "float64", "int32"])
def test_big_endian_compressed_bands_are_right_too(tmp_path: Path, dtype: str) -> None:
    # Pillow 13 gives float32, int16 and int32 of such a file in the wrong byte order.
    band = measured(dtype=dtype)
    path = by_rasterio(tmp_path / "a.tif", band, ENDIANNESS="BIG", compress="lzw")
    assert np.array_equal(read_band(path), band.astype("float32") if dtype != "uint16" else band)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "float64"])
@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}], ids=str)
def test_other_numbers_become_float32(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    band = measured(dtype=dtype)
    if dtype.startswith("i"):
        band[3, 4] = -10000
    if dtype == "uint32":
        band[3, 4] = 4_000_000_000  # does not fit into Pillow's int32
    read = read_band(by_rasterio(tmp_path / "a.tif", band, **options))
    assert read.dtype == np.float32
    assert np.array_equal(read, band.astype(np.float32))


def test_a_float64_beyond_float32_becomes_infinite_without_a_warning(tmp_path: Path) -> None:
    band = np.array([[1e300, -1e300, 1.0]])
    assert read_band(by_rasterio(tmp_path / "a.tif", band)).tolist() == [[np.inf, -np.inf, 1.0]]


@pytest.mark.parametrize("rows", [1, 7, 36, 37, 1000])
def test_strips_may_lie_in_any_order_in_the_file(rows: int) -> None:
    band = measured()
    strips = [band[top : top + rows] for top in range(0, 37, rows)]
    # The second half of the strips comes first, each after a gap of two bytes.
    order = [*range(len(strips) // 2, len(strips)), *range(len(strips) // 2)]
    places, pixels = {}, b""
    for index in order:
        pixels += b"\0\0"
        places[index] = 8 + len(pixels)
        pixels += strips[index].tobytes()
    tags = tags_of(band, 8)
    tags[273] = longs(*(places[index] for index in range(len(strips))))
    tags[278] = longs(rows)
    tags[279] = longs(*(strip.nbytes for strip in strips))
    data = tiff_of_parts(pixels, [sorted(tags.items())])
    assert np.array_equal(read_band(BandBytes(data, "a")), band)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_files_in_memory_are_read_alike(order: str, big: bool) -> None:
    band = measured((16, 20), "uint16")
    read = read_band(BandBytes(tiff(band, order=order, big=big), "scene.zip:a.tif"))
    assert np.array_equal(read, band)


def test_overviews_and_masks_in_the_file_are_no_bands(tmp_path: Path) -> None:
    band = measured((64, 64))
    path = by_rasterio(tmp_path / "a.tif", band)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    assert np.array_equal(read_band(path), band)


def test_a_korean_folder_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "벼 생육이상"
    folder.mkdir()
    assert np.array_equal(read_band(saved_band(folder / "논.tif", measured())), measured())


def test_without_pillow_opencv_reads_compressed_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    band = measured(dtype="uint16")
    path = by_rasterio(tmp_path / "a.tif", band, compress="lzw")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert np.array_equal(read_band(path), band)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingPackageError, match="reading a compressed TIFF of uint16"):
        read_band(path)


def test_plain_bands_need_numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("PIL", "cv2"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    assert np.array_equal(read_band(BandBytes(tiff(measured()), "a")), measured())


def refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_band(BandBytes(data, "a.tif"))


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 2000, 7800, -1, -20, -150])
def test_a_file_that_was_cut_short_is_refused(keep: int) -> None:
    data = tiff(measured())  # its directory comes last
    refused(data[:keep], "'a.tif', which cannot be read .*(cut short|no TIFF)")


def test_pixels_that_were_cut_off_are_noticed() -> None:
    """With the directory in front, as GDAL writes it, only the pixels are missing."""
    band = measured()
    directory = len(tiff_of_parts(b"", [sorted(tags_of(band, 8).items())]))
    tags = sorted(tags_of(band, directory).items())
    data = tiff_of_parts(b"", [tags]) + band.tobytes()
    assert np.array_equal(read_band(BandBytes(data, "a")), band)
    for missing in (1, 100, band.nbytes):
        refused(data[:-missing], r"it was cut short at \d+ bytes")


@pytest.mark.parametrize("options", [{"compress": "deflate"}, {"compress": "lzw", **TILES}])
def test_every_cut_through_a_compressed_file_is_noticed(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    data = by_rasterio(tmp_path / "a.tif", measured(), **options).read_bytes()
    for keep in range(0, len(data), 97):
        refused(data[:keep], "which cannot be read")


def test_compressed_nonsense_is_refused(tmp_path: Path) -> None:
    path = by_rasterio(tmp_path / "a.tif", measured(), compress="deflate")
    data = bytearray(path.read_bytes())
    data[-2000:] = b"\xff" * 2000
    refused(bytes(data), "which cannot be read")


GIANT = longs(0xFFFFFFFF)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({256: GIANT, 257: GIANT}, "4294967295x4294967295 pixels; expected at most 300 million"),
        ({256: longs(20000), 257: longs(20000)}, "of 20000x20000 pixels; expected at most 300"),
        ({256: longs(10000), 257: longs(10000)}, "1 places and 1 lengths for 271 blocks"),
        ({256: longs(10000)}, "blocks of pixels are too short"),
        ({256: longs(0)}, "it is 0x37 pixels"),
        ({257: None}, "it is 53x0 pixels"),
        ({273: longs(0xFFFFFFF0)}, "it was cut short"),
        ({279: GIANT}, "it was cut short"),
        ({279: longs(0), 273: longs(0)}, "some of its blocks were never written"),
        ({279: longs(7843)}, "its blocks of pixels are too short"),
        ({273: longs(8, 8)}, "2 places and 1 lengths for 1 blocks"),
        ({273: None}, "0 places and 1 lengths for 1 blocks"),
        ({278: longs(1)}, "1 places and 1 lengths for 37 blocks"),
        ({278: longs(0)}, "blocks of 53x0 pixels"),
        ({322: longs(1), 323: longs(1)}, "blocks of 1x1 pixels"),
        ({322: longs(0), 323: longs(16)}, "blocks of 0x16 pixels"),
        ({322: GIANT, 323: GIANT}, "blocks of 4294967295x4294967295 pixels"),
        ({322: longs(16), 323: longs(16)}, "0 places and 0 lengths for 12 blocks"),
        ({258: shorts(16)}, "of float 16-bit values; expected 8, 16 or 32-bit integers"),
        ({258: shorts(1), 339: shorts(1)}, "of unsigned 1-bit values"),
        ({258: shorts(12), 339: shorts(1)}, "of unsigned 12-bit values"),
        ({258: shorts(8), 339: shorts(2)}, "of signed 8-bit values"),
        ({258: shorts(64), 339: shorts(6)}, "of complex 64-bit values"),
        ({339: shorts(9)}, "of unknown 32-bit values"),
        ({258: None}, "of mixed values"),
        ({258: shorts(8, 16), 277: shorts(2)}, "of mixed values"),
        ({258: shorts(*[32] * 5), 277: shorts(5)}, "blocks of pixels are too short"),
        ({262: shorts(3)}, "with a palette; expected plain values"),
        ({262: shorts(0)}, "with white as 0; expected plain values"),
        ({262: shorts(6)}, "of photometric kind 6"),
        ({274: shorts(6)}, "of orientation 6"),
        ({259: shorts(7)}, "which cannot be read"),
        ({259: shorts(65000)}, "which cannot be read"),
        ({42113: text("ten")}, "its nodata is b'ten'"),
        ({256: (5, b"\0" * 8)}, "tag 256 is of type 5"),
        ({339: (11, struct.pack("<f", np.nan))}, "tag 339 is of type 11"),
        ({256: (12, struct.pack("<d", 1e300))}, "tag 256 is of type 12"),
        ({277: (16, struct.pack("<Q", 1 << 63))}, "it has 9223372036854775808 values in a pixel"),
        ({277: shorts(0)}, "it has 0 values in a pixel"),
        ({256: (2, b"53")}, "tag 256 is of type 2"),
        ({256: shorts(*[53] * 600)}, "tag 256 of 1200 bytes"),
        ({34736: doubles(*[1.0] * 200_000)}, "tag 34736 of 1600000 bytes"),
    ],
)  # fmt: skip
def test_a_tag_that_lies_is_found(changed: dict[int, Value | None], message: str) -> None:
    refused(tiff(measured(), changed=changed), message)


def test_an_unknown_type_of_a_tag_is_refused() -> None:
    data = bytearray(tiff(measured()))
    entry = data.index(struct.pack("<HH", 256, 4))
    data[entry + 2] = 99
    refused(bytes(data), "tag 256 is of type 99")


def test_a_tag_that_comes_twice_is_refused() -> None:
    band = measured()
    tags = sorted([*tags_of(band, 8).items(), (256, longs(9999))], key=lambda item: item[0])
    refused(tiff_of_parts(band.tobytes(), [tags]), "tag 256 comes twice")


def several(band: Band, count: int, last_page: int = 0) -> bytes:
    tags = sorted(tags_of(band, 8).items())
    return tiff_of_parts(band.tobytes(), [tags] * count, last_page=last_page)


def test_several_pages_or_bands_are_no_band(tmp_path: Path) -> None:
    refused(several(measured(), 5), "'a.tif' with 5 pages; expected one band in a file")
    path = by_rasterio(tmp_path / "a.tif", *[measured(seed=i) for i in range(5)])
    with pytest.raises(ImageError, match="with 5 bands; expected one band in a file"):
        read_band(path)


def test_a_circle_of_pages_ends() -> None:
    band = measured()
    first = 8 + band.nbytes
    refused(several(band, 3, last_page=first), "its pages go round in a circle")
    refused(several(band, 1, last_page=first), "its pages go round in a circle")


def test_more_pages_than_anybody_needs_are_refused() -> None:
    refused(several(measured((4, 4)), 65), "it has more than 64 pages")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        b"II*\0" + b"\0" * 4,
        b"II+\0\x04\0\0\0" + b"\0" * 8,
        b"II*\0" + struct.pack("<IH", 8, 5000) + b"\0" * 90000,
        b"MM\0*" + struct.pack(">I", 0xFFFFFFFF),
    ],
)
def test_what_is_no_tiff_is_refused(data: bytes) -> None:
    refused(data, "which cannot be read .*; expected a whole TIFF file")


def damaged(data: bytes, count: int) -> Iterator[bytes]:
    """The file with some of its bytes changed, always the same ones."""
    random = np.random.default_rng(0)
    for _ in range(count):
        changed = bytearray(data)
        for place in random.integers(0, len(data), 3):
            changed[place] = random.integers(0, 256)
        yield bytes(changed)


@pytest.mark.parametrize("kind", ["plain", "lzw", "tiles"])
def test_random_damage_gives_values_or_an_error_of_ours(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"plain": {}, "lzw": {"compress": "lzw"}, "tiles": TILES}[kind]
    # Small, so that most changes hit the directory.
    path = by_rasterio(tmp_path / "a.tif", measured((6, 8), "uint16"), **options)
    refusals = 0
    for data in damaged(path.read_bytes(), 400):
        try:
            read = read_band(BandBytes(data, "a"))
        except ImageError:
            refusals += 1
        else:
            assert read.ndim == 2
    assert 0 < refusals < 400


@pytest.mark.parametrize("name", ["missing.tif", "folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match=r"which (does not exist|is no regular file)"):
        read_band(tmp_path / name)


def test_pillow_and_rasterio_agree_on_what_the_helper_writes(tmp_path: Path) -> None:
    """So that the files above are refused for what was changed, not for how they are written."""
    path = saved_band(tmp_path / "a.tif", measured())
    with PIL.Image.open(path) as image:
        assert np.array_equal(np.asarray(image), measured())
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(1), measured())
