"""PNG files with the bytes that OpenCV and Pillow write, of images made faster.

Of a scene's time most goes into the compression of its composite. OpenCV filters rows by "sub" and
lets zlib look for runs only (strategy RLE, level 1, memory level 8); zlib-ng makes the same bytes
of that in 0.57 of the time (512x512x3, 2.6 against 4.5 ms). That is no promise of either library,
so it is tried on a small picture first; OpenCV itself writes where it does not hold.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.errors import MissingPackageError
from exporter.prepare.checksum import crc32

if TYPE_CHECKING:
    from engines.resize import Image, Labels

Compress = Callable[[bytes], tuple[bytes, bytes]]  # in two parts, the second one short

_START = b"\x89PNG\r\n\x1a\n"
_SUB = 1  # the filter: each byte less the one of the pixel to its left
_CRC_OF_KIND = {kind: crc32(kind) for kind in (b"IHDR", b"IDAT", b"IEND")}
_PIECE = 8192  # libpng's buffer: bytes of one IDAT chunk
# Below it libpng writes a smaller window into zlib's header. It filters no row of one pixel either.
_LEAST_BYTES = 1 << 16


def png_of_composite(planes: Image) -> bytes:
    """The file that `cv2.imwrite` makes with its defaults of the RGB image of (3, H, W) uint8.

    Raises MissingPackageError without OpenCV.
    """
    compress = _compressor()
    image = image_of_planes(planes)
    if compress is None or image.size < _LEAST_BYTES or image.shape[1] == 1:
        return _png_by_opencv(image)
    return _png(image, compress)


def png_of_mask(mask: Labels, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """An 8-bit palette PNG of (H, W) uint8, as Pillow saves it with compress_level 1.

    That takes half the time of the default. Indices without a colour are black; all 256 are there,
    because with fewer Pillow packs the indices into fewer bits.
    """
    import PIL.Image

    picture = PIL.Image.fromarray(mask)
    colours = bytes(value for rgb in palette for value in rgb)
    picture.putpalette(colours.ljust(768, b"\0"))
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=1)
    return file.getvalue()


def image_of_planes(planes: Image) -> Image:
    """(C, H, W) uint8 as (H, W, C); OpenCV does that in a tenth of numpy's time.

    Raises MissingPackageError without OpenCV.
    """
    image: Image = opencv().merge(tuple(planes))
    return image.reshape(*planes.shape[1:], len(planes))  # OpenCV leaves out an only channel.


def opencv() -> Any:
    """The module cv2; MissingPackageError without it."""
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError(
            "opencv-python-headless", needed_for="preparing scenes", extra="scenes"
        ) from error
    return cv2


def fast_encoder() -> str:
    """The library that composites are compressed with in place of OpenCV's, "" without one."""
    return "zlib-ng" if _compressor() is not None else ""


def _png(image: Image, compress: Compress) -> bytes:
    height, width, channels = image.shape
    rows = image.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1 : 1 + channels] = rows[:, :channels]
    np.subtract(rows[:, channels:], rows[:, :-channels], out=filtered[:, 1 + channels :])
    packed, rest = compress(filtered.data.cast("B"))  # type: ignore[arg-type]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pieces = [_START, *_chunk(b"IHDR", header)]
    view = memoryview(packed)
    whole = len(packed) - len(packed) % _PIECE
    for start in range(0, whole, _PIECE):
        pieces += _chunk(b"IDAT", view[start : start + _PIECE])
    last = packed[whole:] + rest
    for start in range(0, len(last), _PIECE):
        pieces += _chunk(b"IDAT", last[start : start + _PIECE])
    return b"".join([*pieces, *_chunk(b"IEND", b"")])


def _chunk(kind: bytes, data: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    check = crc32(data, _CRC_OF_KIND[kind])
    return struct.pack(">I", len(data)) + kind, data, struct.pack(">I", check)


def _png_by_opencv(image: Image) -> bytes:
    cv2 = opencv()
    written, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert written  # OpenCV refuses no 8-bit image in memory
    return bytes(data.data)


@functools.cache
def _compressor() -> Compress | None:
    """zlib-ng's, where it is installed and makes the bytes that OpenCV here makes."""
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return None

    def compress(data: bytes) -> tuple[bytes, bytes]:
        stream = zlib_ng.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 8, zlib.Z_RLE)
        return stream.compress(data), stream.flush()

    picture = _test_picture()
    return compress if _png(picture, compress) == _png_by_opencv(picture) else None


def _test_picture() -> Image:
    """Noise, slopes and plain colours: blocks of all kinds, runs of all lengths."""
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (256, 192, 3), dtype=np.uint8)
    picture[64:128] = np.arange(192, dtype=np.uint8)[:, np.newaxis]
    picture[128:192] = (picture[128:192] > 250) * np.uint8(255)
    picture[192:] //= 32
    return picture
