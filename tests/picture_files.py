"""Small image files for the tests, and OpenCV's reading of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

Array = NDArray[np.uint8]


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
