"""Pixels of TIFFs that hold measurements or more channels than RGB, exactly as they are stored.

Uncompressed ones, as the raw scenes and the cameras' files are, are read straight into the array,
with numpy alone. Compressed ones go through Pillow, or OpenCV where Pillow gives wrong values:
Pillow 13 does for big-endian LZW and Deflate with more than one byte a value, except uint16, and
knows no float64.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Iterator, NamedTuple, Optional, Tuple, Union

import numpy as np

from engines.bands.tiff_directories import damaged_tiff
from engines.bands.tiff_pages import UNCOMPRESSED, TiffPage, pages_of_tiff
from engines.decoding import MAX_PIXELS, pillow_for_large_images
from engines.errors import ImageError, MissingPackageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engines.resize import Image

    Values = NDArray[Any]  # (H, W) as stored, in this machine's byte order
else:
    Values = np.ndarray  # numpy 1.20 has no NDArray.


class BandBytes(NamedTuple):
    """A TIFF in memory, as from a zip file; `where` names it in messages."""

    data: bytes
    where: str


BandFile = Union[str, "os.PathLike[str]", BandBytes]


def read_band(source: BandFile) -> Values:
    """The one band of a TIFF, (H, W) uint8, uint16 or float32, newly allocated and contiguous.

    int16 becomes float32, which holds it exactly; so do 32-bit integers and float64, rounded.
    Nodata stays as it is. Raises ImageError for a file that is no TIFF, damaged or cut short, has
    several pages or bands, a palette, complex numbers or over 300 million pixels.
    """
    with opened_tiff(source) as (file, where):
        page = only_band(file, where)
        return narrowed(pixels_of_page(file, where, page))


def multi_page_tiff_from_file(path: BandFile, channels: int) -> Image:
    """The image (H, W, channels) uint8 of a TIFF with one 8-bit page for each channel.

    Newly allocated and contiguous. Raises ImageError for another number of pages, pages of
    different sizes, or values that are not 8-bit, and as `read_band`.
    """
    with opened_tiff(path) as (file, where):
        pages = pages_of_tiff(file, where)
        expected = f"{channels} pages of 8-bit grey, one for each channel"
        if len(pages) != channels or any(page.samples != 1 for page in pages):
            raise ImageError(
                f"{where!r} with {len(pages)} pages of "
                f"{' and '.join(sorted({str(page.samples) for page in pages}))} channels",
                expected=f"{expected} of the network",
                do="save the channels as pages, in the order of the training",
            )
        kinds = sorted({page.dtype.name for page in pages})
        sizes = sorted({f"{page.hw[1]}x{page.hw[0]}" for page in pages})
        if kinds != ["uint8"] or len(sizes) > 1:
            raise ImageError(
                f"{where!r} with pages of {' and '.join(sizes)} {' and '.join(kinds)}",
                expected=f"{expected}, all of one size",
                do="make them with riceseg prepare, or save them as the network was trained on",
            )
        if pages[0].hw[0] * pages[0].hw[1] * channels > MAX_PIXELS * 3:  # as an RGB image may have
            raise damaged_tiff(where, f"{channels} pages of {sizes[0]} are too many pixels")
        image: Image = np.empty((*pages[0].hw, channels), np.uint8)
        for channel, page in enumerate(pages):
            image[:, :, channel] = pixels_of_page(file, where, page)
        return image


@contextmanager
def opened_tiff(source: BandFile) -> Iterator[Tuple[BinaryIO, str]]:
    """The open file and its name for messages; ImageError when it cannot be opened or read."""
    if isinstance(source, BandBytes):
        import io

        yield io.BytesIO(source.data), source.where
        return
    where = os.fspath(source)
    try:
        if not os.path.isfile(where):  # A pipe would wait for ever.
            problem = "is no regular file" if os.path.exists(where) else "does not exist"
            raise ImageError(
                f"{where!r}, which {problem}",
                expected="a TIFF file",
                do="check its name and its permissions",
            )
        with open(where, "rb") as file:
            yield file, where
    except OSError as error:
        raise damaged_tiff(where, error.strerror or str(error)) from error


def only_band(file: BinaryIO, where: str) -> TiffPage:
    """The page of a TIFF with one page and one band; ImageError for others."""
    pages = pages_of_tiff(file, where)
    if len(pages) > 1 or pages[0].samples != 1:
        several = f"{len(pages)} pages" if len(pages) > 1 else f"{pages[0].samples} bands"
        raise ImageError(
            f"{where!r} with {several}",
            expected="one band in a file",
            do="save each band as a file of its own",
        )
    return pages[0]


def narrowed(values: Values) -> Values:
    """uint8, uint16 and float32 as they are, the rest as float32; what it cannot hold, infinite."""
    if values.dtype in (np.uint8, np.uint16, np.float32):
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def pixels_of_page(
    file: BinaryIO, where: str, page: TiffPage, into: Optional[Values] = None
) -> Values:
    """(H, W) of the page's dtype, in this machine's byte order.

    Newly allocated, but for `into`, which is used where the pixels can be read straight into it.
    Raises ImageError when they cannot be decoded, MissingPackageError without a decoder for them.
    """
    native = page.dtype.newbyteorder("=")
    try:
        if page.compression == UNCOMPRESSED:
            return _stored_pixels(file, where, page, into)
        decoded = _decoded_pixels(file, where, page)
    except OSError as error:
        raise damaged_tiff(where, error.strerror or str(error)) from error
    floats = decoded.dtype.kind == native.kind == "f" or "f" not in decoded.dtype.kind + native.kind
    if decoded.shape != page.hw or decoded.dtype.itemsize < native.itemsize or not floats:
        raise damaged_tiff(where, f"decoded as {decoded.shape} {decoded.dtype}")
    # Pillow gives int16 and uint32 as int32: the bits are right.
    return decoded.astype(native, order="C")


def _decoded_pixels(file: BinaryIO, where: str, page: TiffPage) -> Values:
    if page.dtype.itemsize == 1 or page.dtype in ("<u2", ">u2", "<i2", "<i4", "<u4", "<f4"):
        return _by_pillow(file, where, page)
    if page.number == 0:
        return _by_opencv(file, where, page)
    raise damaged_tiff(where, f"compressed {page.dtype.name} on a further page")


def _stored_pixels(file: BinaryIO, where: str, page: TiffPage, into: Optional[Values]) -> Values:
    fits = into is not None and into.dtype == page.dtype and into.flags.c_contiguous
    values = into if into is not None and fits else np.empty(page.hw, page.dtype)
    across = -(-page.hw[1] // page.block_hw[1])
    tile = np.empty(page.block_hw, page.dtype) if page.tiled else None
    for top, count, place in _runs(page):
        rows = values[top : top + count]
        if tile is None:
            _fill(file, where, place, rows)
            continue
        for column in range(across):
            left = column * page.block_hw[1]
            _fill(file, where, int(page.places[top // page.block_hw[0] * across + column]), tile)
            part = rows[:, left : left + page.block_hw[1]]
            part[...] = tile[: part.shape[0], : part.shape[1]]
    return values if page.dtype.isnative else values.byteswap().view(page.dtype.newbyteorder("="))


def _runs(page: TiffPage) -> Iterator[Tuple[int, int, int]]:
    """First row, number of rows and place of strips that follow one another in the file.

    Read as one: GDAL's strips have 8 KiB, and each call costs as much as copying that. Of tiles,
    each row of them is one.
    """
    step, height = page.block_hw[0], page.hw[0]
    if page.tiled:
        for top in range(0, height, step):
            yield top, min(step, height - top), 0
        return
    row_bytes = page.hw[1] * page.dtype.itemsize
    first = 0
    for index in range(1, len(page.places) + 1):
        begin = int(page.places[first])
        follows = (index - first) * step * row_bytes + begin
        if index == len(page.places) or int(page.places[index]) != follows:
            yield first * step, min(index * step, height) - first * step, begin
            first = index


def _fill(file: BinaryIO, where: str, place: int, target: Values) -> None:
    file.seek(place)
    buffer: Any = target.reshape(-1).view(np.uint8)
    got = file.readinto(buffer)  # type: ignore[attr-defined]
    if got != target.nbytes:
        raise damaged_tiff(where, "it became shorter while it was read")


def _by_pillow(file: BinaryIO, where: str, page: TiffPage) -> Values:
    try:
        from PIL import Image as pillow
    except ImportError as error:
        if page.number == 0:
            return _by_opencv(file, where, page)
        raise MissingPackageError(
            "Pillow", needed_for="reading compressed TIFF files", extra="onnx"
        ) from error
    try:
        with pillow_for_large_images(pillow):
            file.seek(0)
            image = pillow.open(file, formats=("TIFF",))
            image.seek(page.number)
            if (image.size[1], image.size[0]) != page.hw:
                raise damaged_tiff(where, f"{image.size[0]}x{image.size[1]} pixels to Pillow")
            image.load()
            return np.asarray(image)
    except ImageError:
        raise
    except Exception as error:  # Damaged bytes raise almost anything in a decoder.
        raise damaged_tiff(where, str(error) or type(error).__name__) from error


def _by_opencv(file: BinaryIO, where: str, page: TiffPage) -> Values:
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError(
            "opencv-python-headless",
            needed_for=f"reading a compressed TIFF of {page.dtype.name}",
            extra="scenes",
        ) from error
    file.seek(0)
    try:
        decoded = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise damaged_tiff(where, str(error)) from error
    if decoded is None:
        raise damaged_tiff(where, "OpenCV gives no pixels")
    return np.asarray(decoded)
