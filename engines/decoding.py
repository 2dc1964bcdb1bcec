"""Pillow on a short lead: few formats, one limit of size, no warnings, any damage is one error."""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, List, NamedTuple, Sequence

import numpy as np

from engines.errors import ImageError, MissingPackageError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from engines.resize import Image

MAX_PIXELS = 300_000_000

_EXIF_ORIENTATION = 0x0112

_PILLOW_STATE = threading.Lock()


class Decoded(NamedTuple):
    """A loaded Pillow image; `storage` is how the file packs its values, Pillow's raw mode."""

    image: PillowImage
    storage: str
    orientation: int


def decoded_file(path: Path, formats: Sequence[str]) -> Decoded:
    """Decode the first page of a file in one of Pillow's `formats`; several threads take turns.

    Raises ImageError when that is not possible or it has more than `MAX_PIXELS`,
    MissingPackageError without Pillow.
    """
    try:
        from PIL import Image as pillow
        from PIL import UnidentifiedImageError
    except ImportError as error:
        raise MissingPackageError(
            "Pillow", needed_for="reading image files", extra="onnx"
        ) from error
    try:
        with pillow_for_large_images(pillow), open(path, "rb") as file:
            image = pillow.open(file, formats=tuple(formats))
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(path, f"of {width}x{height} pixels")
            storage = _storage(image)
            image.load()
            return Decoded(image, storage, _orientation(image, pillow.Exif()))
    except ImageError:
        raise
    except pillow.DecompressionBombError as error:  # Twice the limit or more.
        raise _too_large(path, "with far more pixels") from error
    except UnidentifiedImageError as error:
        raise _unreadable(path, formats, "not one of the formats") from error
    except Exception as error:  # Damaged bytes raise almost anything in a decoder.
        raise _unreadable(path, formats, str(error) or type(error).__name__) from error


def upright(array: Image, orientation: int) -> Image:
    """Undo an EXIF orientation on (H, W) or (H, W, C); contiguous."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


@contextmanager
def pillow_for_large_images(pillow: Any) -> Iterator[None]:
    """Here `MAX_PIXELS` is the limit, and odd metadata is no reason to print warnings.

    Both are state of the whole process, so it is put back, and one thread at a time reads.
    """
    with _PILLOW_STATE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = pillow.MAX_IMAGE_PIXELS
        pillow.MAX_IMAGE_PIXELS = MAX_PIXELS
        try:
            yield
        finally:
            pillow.MAX_IMAGE_PIXELS = before


def _too_large(path: Path, size: str) -> ImageError:
    return ImageError(
        f"{str(path)!r} {size}",
        expected=f"at most {MAX_PIXELS // 1_000_000} million pixels",
        do="cut it into tiles",
    )


def _unreadable(path: Path, formats: Sequence[str], reason: str) -> ImageError:
    return ImageError(
        f"{str(path)!r}, which cannot be read ({reason})",
        expected=f"a whole {', '.join(formats[:-1])} or {formats[-1]} file",
        do="copy or convert the file again, or leave it out",
    )


def _storage(image: PillowImage) -> str:
    """Pillow's raw mode, "" where it has none; must be asked before the image is loaded."""
    tiles: List[Any] = getattr(image, "tile", [])
    packing = tiles[0][3] if tiles else ""
    return str(packing[0] if isinstance(packing, tuple) and packing else packing)


def _orientation(image: Any, exif: Any) -> int:
    """EXIF orientation 1..8 that the pixels still need; must be asked after the image is loaded.

    Not `image.getexif()`, which also believes XMP; OpenCV does not.
    """
    if image.format == "TIFF":
        return 1  # Pillow turned it when it loaded it.
    try:
        exif.load(image.info.get("exif", b""))
        return int(exif.get(_EXIF_ORIENTATION, 1))
    except Exception:  # Broken EXIF says nothing about the pixels, which are whole.
        return 1
