"""Image files: what is read is what OpenCV reads, and everything else is one clear line."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from engines.errors import DatasetError, ImageError, MissingPackageError, UserError
from engines.images import image_files_from, image_from_file, mask_from_file, sha256_of_file

Array = NDArray[np.uint8]

ASKS_TO_CONVERT = "expected 8-bit RGB, as .*; do this: pass --convert-images"


def picture(height: int = 24, width: int = 36, channels: int = 3) -> Array:
    """Smooth, so that JPEG keeps it, and different in every corner and channel."""
    small = np.random.default_rng(channels).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (width, height)), np.uint8)


def opencv(path: Path) -> NDArray[np.int64]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None
    return image[:, :, ::-1].astype(np.int64)


def furthest(image: Array, expected: NDArray[np.int64]) -> int:
    assert image.shape == expected.shape
    return int(np.abs(image - expected).max())


def saved(path: Path, image: PIL.Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG from its specification; `rows` has one filter byte before each row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


# Reading images


@pytest.mark.parametrize(
    "name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.webp", "벼 생육 이상.png"]
)
def test_an_rgb_image_is_read_as_it_was_saved(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path / name, PIL.Image.fromarray(picture()), **options)
    image = image_from_file(path)
    assert (image == picture()).all()
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_is_read_as_opencv_reads_it(
    tmp_path: Path, suffix: str, options: dict[str, object]
) -> None:
    path = saved(tmp_path / f"a{suffix}", PIL.Image.fromarray(picture()), **options)
    assert furthest(image_from_file(path), opencv(path)) <= 1


def test_a_palette_image_is_read_by_its_colours(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(picture()).quantize(16))
    with PIL.Image.open(path) as image:
        assert image.mode == "P"
    assert furthest(image_from_file(path), opencv(path)) == 0


def refused_files(folder: Path) -> dict[str, Path]:
    """By the words of the error: files that mmsegmentation would make RGB of."""
    rgb = PIL.Image.fromarray(picture())
    alpha = PIL.Image.fromarray(picture(channels=4))
    deep = np.random.default_rng(0).integers(0, 65536, (24, 36, 3), dtype=np.uint16)
    cv2.imwrite(str(folder / "deep_rgb.png"), deep)
    cv2.imwrite(str(folder / "deep_rgb.tif"), deep)
    palette = rgb.quantize(16)
    return {
        "black and white (mode 1)": saved(folder / "1.png", rgb.convert("1")),
        "grey (mode L)": saved(folder / "l.png", rgb.convert("L")),
        "grey (mode L) ": saved(folder / "l.bmp", rgb.convert("L")),
        "grey with alpha (mode LA)": saved(folder / "la.png", alpha.convert("LA")),
        "RGB with alpha (mode RGBA)": saved(folder / "rgba.png", alpha),
        "RGB with alpha (mode RGBA) ": saved(
            folder / "rgba.webp", alpha, lossless=True, exact=True
        ),
        "palette with transparency (mode P)": saved(folder / "p.png", palette, transparency=3),
        "palette with transparency (mode P) ": saved(
            folder / "pt.png", palette, transparency=bytes(range(0, 256, 16))
        ),
        "16-bit grey": saved(folder / "16.png", PIL.Image.fromarray(deep[:, :, 0])),
        "16-bit grey ": saved(folder / "16.tif", PIL.Image.fromarray(deep[:, :, 0])),
        "16-bit RGB (mode RGB)": folder / "deep_rgb.png",
        "16-bit RGB (mode RGB) ": folder / "deep_rgb.tif",
        "RGB with further channels": saved(folder / "rgbx.tif", rgb.convert("RGBX")),
        "CMYK (mode CMYK)": saved(folder / "cmyk.jpg", rgb.convert("CMYK"), quality=100),
    }


def test_what_is_not_quite_rgb_is_refused_by_its_name_and_read_as_opencv_does_on_request(
    tmp_path: Path,
) -> None:
    for words, path in refused_files(tmp_path).items():
        with pytest.raises(ImageError, match=ASKS_TO_CONVERT) as caught:
            image_from_file(path)
        assert f"got {str(path)!r}, {words.strip()}" in str(caught.value)
        image = image_from_file(path, convert=True)
        # OpenCV rounds 16-bit TIFF and computes CMYK with other constants.
        assert furthest(image, opencv(path)) <= (1 if path.suffix in (".tif", ".jpg") else 0), words
        assert image.flags.c_contiguous


def test_the_upper_eight_of_sixteen_bits_are_kept(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 511, 0x1234, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        path = saved(tmp_path / name, PIL.Image.fromarray(deep))
        assert image_from_file(path, convert=True)[0, :, 1].tolist() == [0, 0, 1, 1, 0x12, 255]


def test_sixteen_bits_of_a_big_endian_tiff_are_read_right(tmp_path: Path) -> None:
    pixels = np.array([[0x0102, 0xFE00]], ">u2").tobytes()
    tags = [
        (256, 3, 2),
        (257, 3, 1),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (277, 3, 1),
        (278, 3, 1),
    ]
    offset = 8 + 2 + 12 * 9 + 4
    entries = b"".join(struct.pack(">HHIHH", tag, kind, 1, value, 0) for tag, kind, value in tags)
    entries = (
        entries[: 12 * 5]
        + struct.pack(">HHII", 273, 4, 1, offset)
        + entries[12 * 5 :]
        + struct.pack(">HHII", 279, 4, 1, len(pixels))
    )
    path = tmp_path / "a.tif"
    path.write_bytes(b"MM\x00*\x00\x00\x00\x08\x00\x09" + entries + b"\0\0\0\0" + pixels)
    assert image_from_file(path, convert=True)[0, :, 0].tolist() == [1, 0xFE]


def test_ycbcr_is_computed_on_request(tmp_path: Path) -> None:
    # JPEG's definition: R = Y + 1.402 (Cr - 128), G = Y - 0.344 (Cb - 128) - 0.714 (Cr - 128)
    path = saved(tmp_path / "a.tif", PIL.Image.new("YCbCr", (2, 2), (100, 128, 178)))
    with pytest.raises(ImageError, match=ASKS_TO_CONVERT):
        image_from_file(path)
    red, green, blue = image_from_file(path, convert=True)[0, 0].tolist()
    assert abs(red - 170) <= 1
    assert abs(green - 64) <= 1
    assert abs(blue - 100) <= 1


def test_palette_with_alpha_gives_its_colours(tmp_path: Path) -> None:
    image = PIL.Image.new("PA", (1, 1))
    image.putpalette([7, 8, 9])
    path = saved(tmp_path / "a.tif", image)
    with pytest.raises(ImageError, match=r"palette with alpha \(mode PA\)"):
        image_from_file(path)
    assert image_from_file(path, convert=True).tolist() == [[[7, 8, 9]]]


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_32_bits_float_and_lab_never_become_rgb(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.tif", PIL.Image.new(mode, (4, 4)))
    for convert in (False, True):
        with pytest.raises(
            ImageError, match=f"of mode {mode}; expected 8-bit RGB; do this: decide"
        ):
            image_from_file(path, convert=convert)


# Orientation


def turned(image: Array, orientation: int) -> Array:
    """The EXIF standard's table: where row 0 and column 0 of the stored image are seen."""
    return {
        1: image,
        2: np.fliplr(image),
        3: np.rot90(image, 2),
        4: np.flipud(image),
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, -1),
        7: np.rot90(image, 2).transpose(1, 0, 2),
        8: np.rot90(image, 1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 100, "subsampling": 0}),
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
    ],
)
def test_an_image_is_turned_upright(
    tmp_path: Path, orientation: int, name: str, options: dict[str, object]
) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / name, PIL.Image.fromarray(picture()), exif=exif, **options)
    image = image_from_file(path)
    tolerance = 6 if name == "a.jpg" else 0
    assert furthest(image, turned(picture(), orientation).astype(np.int64)) <= tolerance
    assert image.flags.c_contiguous
    # OpenCV 5.0 fails on a TIFF that lies on its side.
    if name != "a.tif" or orientation < 5:
        assert furthest(image, opencv(path)) <= (1 if name == "a.jpg" else 0)


def test_a_mask_is_turned_as_its_image_is(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    labels = picture()[:, :, 0]
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(labels), exif=exif)
    assert (mask_from_file(path) == np.rot90(labels, -1)).all()


def test_orientation_that_stands_in_xmp_only_is_not_believed_as_opencv_does_not(
    tmp_path: Path,
) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    path = saved(tmp_path / "a.jpg", PIL.Image.fromarray(picture()))
    data = path.read_bytes()
    path.write_bytes(
        data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    )
    assert image_from_file(path).shape == opencv(path).shape == (24, 36, 3)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_broken_exif_leaves_the_image_as_stored(tmp_path: Path, exif: bytes) -> None:
    path = saved(tmp_path / "a.jpg", PIL.Image.fromarray(picture()), exif=exif)
    assert furthest(image_from_file(path), opencv(path)) <= 1


# Damage


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


def test_without_pillow_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(picture()))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackageError, match=r"'Pillow' .* pip install 'riceseg\[onnx\]'"):
        image_from_file(path)


# Arrays


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_npy_gives_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    for stored in (array, np.asfortranarray(array)):
        np.save(tmp_path / "a.npy", stored)
        image = image_from_file(tmp_path / "a.npy", channels=channels)
        assert (image == array).all()
        assert type(image) is np.ndarray
        assert image.flags.c_contiguous
        assert image.flags.writeable


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((4, 6, 3), np.uint8),
            r"of uint8 with shape \(4, 6, 3\); expected uint8 with shape",
        ),
        (np.zeros((5, 4, 6), np.uint8), r"shape \(height, width, 5\); do this: .* channels last"),
        (np.zeros((4, 6), np.uint8), r"of uint8 with shape \(4, 6\)"),
        (np.zeros((4, 6, 5), np.float32), r"of float32 with shape \(4, 6, 5\)"),
        (np.array({"a": 1}, dtype=object), "cannot be read"),
        (np.zeros((0, 6, 5), np.uint8), r"with shape \(0, 6, 5\)|cannot be read"),
    ],
)
def test_npy_of_another_shape_or_kind_is_refused(
    tmp_path: Path, array: Array, message: str
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ImageError, match=message):
        image_from_file(tmp_path / "a.npy", channels=5)


def test_npy_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 6, 3), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ImageError, match=r"cannot be read \(mmap length is greater"):
        image_from_file(path)
    path.write_bytes(whole.replace(b"(4, 6, 3), }    ", b"(400000, 60000, 3), }")[: len(whole)])
    with pytest.raises(ImageError, match="cannot be read"):
        image_from_file(path)


def test_a_zip_named_npy_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, image=picture())
    with pytest.raises(ImageError, match="cannot be read"):
        image_from_file(tmp_path / "a.npy")


def test_an_rgb_file_is_refused_for_a_network_of_five_channels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(picture()))
    with pytest.raises(
        ImageError, match=r"a network of 5 channels; expected a \.npy file of uint8"
    ):
        image_from_file(path, channels=5)


# Masks


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


# Lists of files


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


# Hashes


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
