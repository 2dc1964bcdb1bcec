"""What is read from an image file is what OpenCV reads, and the rest is refused by its name."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from picture_files import Array, furthest, opencv, picture, saved

from engines.errors import ImageError
from engines.images import image_from_file, mask_from_file

ASKS_TO_CONVERT = "expected 8-bit RGB, as .*; do this: pass --convert-images"


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
