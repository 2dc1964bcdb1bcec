"""Image and mask files by OpenCV, for a board that has it and not Pillow: PNG, JPEG and BMP.

OpenCV makes an image of almost anything and says nothing: a truncated file becomes partly grey, a
palette mask becomes colours. So the file's own header is read first, and what OpenCV would lose or
change is refused, with Pillow as the way out.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Tuple

import numpy as np

from engines.decoding import MAX_PIXELS
from engines.errors import DatasetError, ImageError

if TYPE_CHECKING:
    from engines.resize import Image, Labels

_PNG, _JPEG, _BMP = "PNG", "JPEG", "BMP"
_PNG_START, _JPEG_START, _BMP_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_JPEG_KINDS = {1: "grey", 3: "RGB", 4: "CMYK"}
_INSTALL = "install Pillow, which reads it (pip install Pillow, or apt install python3-pil)"


@dataclass(frozen=True)
class _Header:
    """What a file says of itself; `whole` tells whether its end is there. Width first, as there."""

    format: str
    width: int
    height: int
    kind: str
    bits: int
    whole: bool


def opencv_instead_of_pillow() -> bool:
    """Whether files are read here: Pillow reads and checks more, so it comes first."""
    if importlib.util.find_spec("PIL") is not None:
        return False
    return importlib.util.find_spec("cv2") is not None


def image_by_opencv(path: Path, *, convert: bool) -> Image:
    """(H, W, 3) uint8 RGB, turned upright, as `engines.images.image_from_file`; never CMYK."""
    data, header = _checked(path)
    if header.kind == "CMYK" or b"eXIf" in data:
        raise _refused(path, f"{header.kind} {header.format} that OpenCV reads in its own way")
    loss = _loss_as_rgb(header, data)
    if loss and not convert:
        raise ImageError(
            f"{str(path)!r}, {loss}",
            expected="8-bit RGB, as the network was trained on",
            do="pass --convert-images if it is meant to be read as RGB",
        )
    import cv2

    decoded = _decoded(path, data, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(decoded[:, :, ::-1])


def mask_by_opencv(path: Path) -> Labels:
    """(H, W) uint8 class indices of a grey PNG of 1 to 16 bits."""
    data, header = _checked(path)
    if header.format != _PNG or header.kind == "palette" or b"eXIf" in data or b"tRNS" in data:
        raise _refused(path, f"a {header.kind} {header.format} as a mask")
    if header.kind != "grey":
        raise DatasetError(
            f"mask {str(path)!r} of {header.kind}",
            expected="one channel with the class index of each pixel",
            do="replace each colour by its class index and save as 8-bit grey PNG",
        )
    import cv2

    indices = _decoded(path, data, cv2.IMREAD_UNCHANGED)
    # OpenCV spreads fewer bits over 0..255.
    indices = indices // {1: 255, 2: 85, 4: 17}.get(header.bits, 1)
    if indices.max() > 255:
        raise DatasetError(
            f"mask {str(path)!r} with values up to {indices.max()}",
            expected="class indices 0..254, and 255 where there is no label",
            do="save the class indices, not an image or instance numbers",
        )
    return np.ascontiguousarray(indices, np.uint8)


def _loss_as_rgb(header: _Header, data: bytes) -> str:
    """What the image is if RGB is not quite the same, else ""."""
    if header.kind == "palette":
        return "palette with transparency" if b"tRNS" in data else ""
    if header.bits != 8:
        return f"{header.bits}-bit {header.kind}"
    return "" if header.kind == "RGB" else header.kind


def _checked(path: Path) -> Tuple[bytes, _Header]:
    """The file's bytes and header. ImageError for another format, a damaged or too large one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    try:
        header = _header(data)
    except (struct.error, IndexError, KeyError) as error:
        raise _unreadable(path, "its header is damaged") from error
    if header is None:
        raise _refused(path, "none of PNG, JPEG and BMP")
    if header.width * header.height > MAX_PIXELS:
        raise ImageError(
            f"{str(path)!r} of {header.width}x{header.height} pixels",
            expected=f"at most {MAX_PIXELS // 1_000_000} million pixels",
            do="cut it into tiles",
        )
    if not header.whole:
        raise _unreadable(path, "it is truncated")
    return data, header


def _header(data: bytes) -> Optional[_Header]:
    if data.startswith(_PNG_START):
        width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
        return _Header(_PNG, width, height, _PNG_KINDS[colour], bits, b"IEND" in data[-64:])
    if data.startswith(_JPEG_START):
        return _jpeg_header(data)
    if data.startswith(_BMP_START):
        (size,) = struct.unpack("<I", data[2:6])
        width, height, _, bits = struct.unpack("<iiHH", data[18:30])
        kind = "RGB" if bits in (24, 32) else "palette"
        return _Header(_BMP, abs(width), abs(height), kind, 8, size <= len(data))
    return None


def _jpeg_header(data: bytes) -> _Header:
    """Segments are skipped by their length, so that a preview inside EXIF is not taken for it."""
    place, found = 2, None
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a filler
            place += 1
            continue
        (length,) = struct.unpack(">H", data[place + 2 : place + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, parts = struct.unpack(">BHHB", data[place + 4 : place + 10])
            found = _Header(_JPEG, width, height, _JPEG_KINDS[parts], bits, False)
        if marker == 0xDA and found is not None:  # the pixels begin
            whole = data.rfind(b"\xff\xd9") > place
            return _Header(_JPEG, found.width, found.height, found.kind, found.bits, whole)
        place += 2 + length
    raise IndexError("no pixels")


def _decoded(path: Path, data: bytes, flags: int) -> Any:
    import cv2

    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _unreadable(path, str(error)) from error
    if decoded is None:
        raise _unreadable(path, "OpenCV gives no pixels")
    return decoded


def _refused(path: Path, what: str) -> ImageError:
    return ImageError(
        f"{str(path)!r}, {what}", expected="PNG, JPEG or BMP that OpenCV keeps", do=_INSTALL
    )


def _unreadable(path: Path, reason: str) -> ImageError:
    return ImageError(
        f"{str(path)!r}, which cannot be read ({reason})",
        expected="a whole PNG, JPEG or BMP file",
        do="copy or convert the file again, or leave it out",
    )
