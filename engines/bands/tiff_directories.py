"""A TIFF's chain of directories, read without a library and believed in nothing.

Classic and BigTIFF, either byte order. Every length is checked against the file's own, so a file
that promises more than it holds costs nothing. Source: TIFF 6.0 and the BigTIFF proposal.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, BinaryIO, Dict, List, Tuple

import numpy as np

from engines.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tags = Dict[int, Tuple[int, bytes]]  # by tag: the number of its type, and its values as stored

MAX_PAGES = 64  # with overviews and masks

# Bytes of one value by TIFF's number of its type.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES.update({16: 8, 17: 8, 18: 8})  # of BigTIFF
_UNSIGNED = (1, 3, 4, 16)
_TYPE_NUMPY = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 11: "f4", 12: "f8", 16: "u8"}

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STRIP_PLACES, ORIENTATION, SAMPLES, STRIP_ROWS, STRIP_BYTES = 273, 274, 277, 278, 279
TILE_WIDTH, TILE_HEIGHT, TILE_PLACES, TILE_BYTES, FORMAT = 322, 323, 324, 325, 339
XMP, SCALE, TIE_POINTS, MATRIX = 700, 33550, 33922, 34264
GEO_KEYS, GEO_NUMBERS, NODATA = 34735, 34736, 42113
_SHORT = {  # no value of these is longer than a few bytes
    SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES,
    STRIP_ROWS, TILE_WIDTH, TILE_HEIGHT, FORMAT,
}  # fmt: skip
_LONG = {STRIP_PLACES, STRIP_BYTES, TILE_PLACES, TILE_BYTES}
_TEXT = {XMP, SCALE, TIE_POINTS, MATRIX, GEO_KEYS, GEO_NUMBERS, NODATA}
_WANTED = _SHORT | _LONG | _TEXT
_MAX_SHORT, _MAX_TEXT = 1 << 10, 1 << 20


def damaged_tiff(where: str, reason: str) -> ImageError:
    """The error for a file that is no TIFF or not a whole one."""
    return ImageError(
        f"{where!r}, which cannot be read ({reason})",
        expected="a whole TIFF file",
        do="copy or export the file again, or leave it out",
    )


class Directories:
    """The file's chain of directories; each becomes a mapping from tag to its raw values."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file, self.where = file, where
        self.size = file.seek(0, os.SEEK_END)
        start = self.bytes_at(0, 8)
        order = {b"II": "<", b"MM": ">"}.get(start[:2])
        if order is None:
            raise damaged_tiff(where, "it is no TIFF")
        self.order: str = order
        version = self._integer(start[2:4])
        if version not in (42, 43):
            raise damaged_tiff(where, "it is no TIFF")
        self._big = version == 43
        if self._big and start[4:8] != np.array([8, 0], order + "u2").tobytes():
            raise damaged_tiff(where, "its header is damaged")
        self._first = self._integer(self.bytes_at(8, 8) if self._big else start[4:8])

    def read(self) -> List[Tags]:
        """By tag: number of the type, and the values as stored."""
        found: List[Tags] = []
        seen = set()
        place = self._first
        while place:
            if place in seen:
                raise damaged_tiff(self.where, "its pages go round in a circle")
            if len(found) == MAX_PAGES:
                raise damaged_tiff(self.where, f"it has more than {MAX_PAGES} pages")
            seen.add(place)
            tags, place = self._directory(place)
            found.append(tags)
        return found

    def bytes_at(self, place: int, count: int) -> bytes:
        """Exactly `count` bytes; ImageError when the file ends before."""
        if not 0 <= place <= place + count <= self.size:
            raise damaged_tiff(self.where, f"it was cut short at {self.size} bytes")
        self._file.seek(place)
        data = self._file.read(count)
        if len(data) != count:
            raise damaged_tiff(self.where, "it became shorter while it was read")
        return data

    def values(self, tags: Tags, tag: int) -> NDArray[Any]:
        """The numbers of a tag, empty without it."""
        kind, data = tags.get(tag, (1, b""))
        if kind not in _TYPE_NUMPY:
            raise damaged_tiff(self.where, f"tag {tag} is of type {kind}")
        return np.frombuffer(data, self.order + _TYPE_NUMPY[kind])

    def number(self, tags: Tags, tag: int, default: int) -> int:
        """The first number of a tag of whole numbers."""
        kind, data = tags.get(tag, (1, b""))
        return self._integer(data[: _TYPE_BYTES[kind]]) if data else default

    def _directory(self, place: int) -> Tuple[Tags, int]:
        count_bytes, entry, place_bytes = (8, "HHQ8s", 8) if self._big else (2, "HHI4s", 4)
        entries = struct.Struct(self.order + entry)
        count = self._integer(self.bytes_at(place, count_bytes))
        if count > 4096:
            raise damaged_tiff(self.where, f"a directory of {count} entries")
        data = self.bytes_at(place + count_bytes, count * entries.size + place_bytes)
        tags: Tags = {}
        for tag, kind, length, value in entries.iter_unpack(data[:-place_bytes]):
            if tag not in _WANTED:
                continue
            if tag in tags:  # Whoever decodes might believe the other one.
                raise damaged_tiff(self.where, f"tag {tag} comes twice")
            tags[tag] = self._entry(tag, kind, length, value)
        return tags, self._integer(data[-place_bytes:])

    def _entry(self, tag: int, kind: int, count: int, value: bytes) -> Tuple[int, bytes]:
        """`value` holds the values, or where they are when they are longer."""
        numeric = tag in _SHORT or tag in _LONG
        if kind not in _TYPE_BYTES or (numeric and kind not in _UNSIGNED):
            raise damaged_tiff(self.where, f"tag {tag} is of type {kind}")
        length = count * _TYPE_BYTES[kind]
        if tag not in _LONG and length > (_MAX_TEXT if tag in _TEXT else _MAX_SHORT):
            raise damaged_tiff(self.where, f"tag {tag} of {length} bytes")
        if length <= len(value):
            return kind, value[:length]
        return kind, self.bytes_at(self._integer(value), length)

    def _integer(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self.order == "<" else "big")
