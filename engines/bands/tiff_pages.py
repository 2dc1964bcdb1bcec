"""What a TIFF says of its pages, read without a library and believed in nothing.

Sizes, places of the pixels, nodata, georeference and XMP: what decides whether a band can be used,
before anything is decoded. Classic and BigTIFF, either byte order. Every number is checked against
the file's own length, so a file that promises more than it holds costs nothing.
Source: TIFF 6.0, the GeoTIFF standard (OGC 19-008r4), GDAL's tag 42113.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Optional, Tuple

import numpy as np

from engines.bands import tiff_directories as tag
from engines.bands.tiff_directories import Directories, Tags, damaged_tiff
from engines.decoding import MAX_PIXELS
from engines.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Places = NDArray[np.uint64]  # bytes from the file's begin, or counts of bytes
else:
    Places = np.ndarray  # numpy 1.20 has no NDArray.

UNCOMPRESSED = 1

_KINDS = {(1, 8): "u1", (1, 16): "u2", (1, 32): "u4", (2, 16): "i2", (2, 32): "i4"}
_KINDS.update({(3, 32): "f4", (3, 64): "f8"})
_FORMAT_NAMES = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex"}


@dataclass(frozen=True)
class Georeference:
    """Where the pixels lie: `transform` (a, b, c, d, e, f), x = a * column + b * row + c and so on.

    `transform` is () without one; `keys` are the numbers of the coordinate system, as stored.
    """

    transform: Tuple[float, ...]
    keys: Tuple[Any, ...]

    def agrees_with(self, other: Georeference) -> bool:
        """The same system and the same place within a hundredth of a pixel.

        The pixels' sizes to a millionth, which is a hundredth of a pixel after 10,000 of them.
        """
        if self.keys != other.keys or len(self.transform) != len(other.transform):
            return False
        size = max((abs(self.transform[i]) for i in (0, 1, 3, 4) if self.transform), default=0.0)
        near = [size * (1e-2 if i in (2, 5) else 1e-6) for i in range(len(self.transform))]
        return all(
            abs(a - b) <= within  # not with NaN
            for a, b, within in zip(self.transform, other.transform, near)
        )


@dataclass(frozen=True)
class TiffPage:
    """One image of a TIFF, checked: its blocks, all of `block_hw`, lie in the file by row.

    `number` counts the file's directories from 0. `dtype` has the file's byte order. `nodata` is
    GDAL's, None without. Strips are blocks as wide as the image.
    """

    number: int
    hw: Tuple[int, int]
    samples: int
    dtype: np.dtype[Any]
    compression: int
    block_hw: Tuple[int, int]
    places: Places
    byte_counts: Places
    nodata: Optional[float]
    georeference: Georeference
    xmp: bytes

    @property
    def tiled(self) -> bool:
        """Whether blocks may be narrower than the image, or reach beyond it."""
        return self.block_hw[1] != self.hw[1]


def pages_of_tiff(file: BinaryIO, where: str) -> Tuple[TiffPage, ...]:
    """The full-size pages of an open TIFF; overviews and masks are left out.

    Raises ImageError for another format, a file that was cut short, one with over 300 million
    pixels or 64 pages, and values other than 8, 16 and 32-bit integers and 32 and 64-bit floats.
    `where` names the file in messages.
    """
    directories = Directories(file, where)
    pages = []
    for number, tags in enumerate(directories.read()):
        if directories.number(tags, tag.SUBFILE, 0) & 0b101 == 0:  # reduced size 1, mask 4
            pages.append(_Page(directories, tags).checked(number))
    if not pages:
        raise damaged_tiff(where, "it has no page")
    return tuple(pages)


class _Page:
    """Makes a `TiffPage` of one directory."""

    def __init__(self, file: Directories, tags: Tags) -> None:
        self._file, self._tags = file, tags

    def checked(self, number: int) -> TiffPage:
        hw = (self._number(tag.HEIGHT), self._number(tag.WIDTH))
        if min(hw) < 1:
            raise damaged_tiff(self._file.where, f"it is {hw[1]}x{hw[0]} pixels")
        if hw[0] * hw[1] > MAX_PIXELS:
            raise ImageError(
                f"{self._file.where!r} of {hw[1]}x{hw[0]} pixels",
                expected=f"at most {MAX_PIXELS // 1_000_000} million pixels",
                do="cut it into tiles",
            )
        self._check_plain()
        dtype = self._dtype()
        samples = self._number(tag.SAMPLES, 1)
        if not 1 <= samples <= 0xFFFF:
            raise damaged_tiff(self._file.where, f"it has {samples} values in a pixel")
        compression = self._number(tag.COMPRESSION, UNCOMPRESSED)
        block_hw, places, counts = self._blocks(hw)
        if compression == UNCOMPRESSED:
            self._check_lengths(hw, block_hw, counts, samples * dtype.itemsize)
        return TiffPage(
            number, hw, samples, dtype, compression, block_hw, places, counts,
            self._nodata(), self._georeference(), self._tags.get(tag.XMP, (1, b""))[1],
        )  # fmt: skip

    def _number(self, tag: int, default: int = 0) -> int:
        return self._file.number(self._tags, tag, default)

    def _check_plain(self) -> None:
        """Nothing that turns or inverts values, which every reader does in its own way."""
        photometric = self._number(tag.PHOTOMETRIC, 1)
        turned = self._number(tag.ORIENTATION, 1)
        if photometric not in (1, 2) or turned != 1:
            what = {0: "with white as 0", 3: "with a palette"}.get(
                photometric, f"of photometric kind {photometric}"
            )
            raise ImageError(
                f"{self._file.where!r} {what if turned == 1 else f'of orientation {turned}'}",
                expected="plain values, the first row on top",
                do="export it as a plain TIFF, for example with gdal_translate",
            )

    def _dtype(self) -> np.dtype[Any]:
        bits = self._file.values(self._tags, tag.BITS)
        formats = self._file.values(self._tags, tag.FORMAT)
        kinds = {(int(f), int(b)) for f in formats for b in bits} if len(formats) else {
            (1, int(b)) for b in bits
        }  # fmt: skip
        kind = kinds.pop() if len(kinds) == 1 else (0, 0)
        if kind not in _KINDS:
            named = f"{_FORMAT_NAMES.get(kind[0], 'unknown')} {kind[1]}-bit" if kind[1] else "mixed"
            raise ImageError(
                f"{self._file.where!r} of {named} values",
                expected="8, 16 or 32-bit integers or 32 or 64-bit floats",
                do="export it as float32",
            )
        return np.dtype(self._file.order + _KINDS[kind])

    def _blocks(self, hw: Tuple[int, int]) -> Tuple[Tuple[int, int], Places, Places]:
        tiled = tag.TILE_WIDTH in self._tags
        if tiled:
            block_hw = (self._number(tag.TILE_HEIGHT), self._number(tag.TILE_WIDTH))
            tags = (tag.TILE_PLACES, tag.TILE_BYTES)
        else:
            block_hw = (min(self._number(tag.STRIP_ROWS, hw[0]), hw[0]), hw[1])
            tags = (tag.STRIP_PLACES, tag.STRIP_BYTES)
        # A tile's sides are multiples of 16; smaller ones only make the tables longer.
        if block_hw[0] < 1 or (tiled and (min(block_hw) < 16 or max(block_hw) > 1 << 16)):
            raise damaged_tiff(self._file.where, f"blocks of {block_hw[1]}x{block_hw[0]} pixels")
        places, counts = (self._file.values(self._tags, tag).astype(np.uint64) for tag in tags)
        expected = -(-hw[0] // block_hw[0]) * -(-hw[1] // block_hw[1])
        if not len(places) == len(counts) == expected:
            raise damaged_tiff(
                self._file.where,
                f"{len(places)} places and {len(counts)} lengths for {expected} blocks of pixels",
            )
        # Compared in this form because a sum of two uint64 may begin at 0 again.
        size = np.uint64(self._file.size)
        if (counts > size).any() or (places > size - counts).any():
            raise damaged_tiff(self._file.where, f"it was cut short at {self._file.size} bytes")
        if (counts == 0).any():
            raise damaged_tiff(self._file.where, "some of its blocks were never written")
        return block_hw, places, counts

    def _check_lengths(
        self, hw: Tuple[int, int], block_hw: Tuple[int, int], counts: Places, pixel_bytes: int
    ) -> None:
        """Blocks hold all their pixels; the last strip only the rows that are left."""
        needed = np.full(len(counts), block_hw[0] * block_hw[1] * pixel_bytes, np.uint64)
        if tag.TILE_WIDTH not in self._tags:
            rows = hw[0] - block_hw[0] * (len(counts) - 1)
            needed[-1] = rows * block_hw[1] * pixel_bytes
        if (counts < needed).any():
            raise damaged_tiff(self._file.where, "its blocks of pixels are too short")

    def _nodata(self) -> Optional[float]:
        text = self._tags.get(tag.NODATA, (2, b""))[1].split(b"\0")[0].strip()
        if not text:
            return None
        try:
            return float(text)
        except ValueError as error:
            raise damaged_tiff(self._file.where, f"its nodata is {text[:40]!r}") from error

    def _georeference(self) -> Georeference:
        keys = tuple(self._file.values(self._tags, tag.GEO_KEYS).tolist())
        numbers = tuple(self._file.values(self._tags, tag.GEO_NUMBERS).tolist())
        matrix = self._file.values(self._tags, tag.MATRIX).tolist()
        scale = self._file.values(self._tags, tag.SCALE).tolist()
        points = self._file.values(self._tags, tag.TIE_POINTS).tolist()
        transform: Tuple[float, ...] = ()
        if len(matrix) == 16:
            transform = tuple(matrix[i] for i in (0, 1, 3, 4, 5, 7))
        elif len(scale) >= 2 and len(points) == 6:
            left = points[3] - points[0] * scale[0]
            top = points[4] + points[1] * scale[1]
            transform = (scale[0], 0.0, left, 0.0, -scale[1], top)
        elif points:  # Ground control points: compared as they are.
            keys += ("points", *points)
        return Georeference(transform, (*keys, "numbers", *numbers) if numbers else keys)
