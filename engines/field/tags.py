"""Tags of a TIFF that its end has cut off: GDAL leaves them out with a warning that nobody sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, List, Tuple

# What the place of a raster, its nodata and its blocks depend on; others may be damaged.
_NAMES: Dict[int, str] = {
    273: "StripOffsets",
    279: "StripByteCounts",
    324: "TileOffsets",
    325: "TileByteCounts",
    33550: "GeoPixelScale",
    33922: "GeoTiePoints",
    34264: "GeoTransMatrix",
    34735: "GeoKeyDirectory",
    34736: "GeoDoubleParams",
    34737: "GeoASCIIParams",
    42112: "GDALMetadata",
    42113: "GDALNoData",
    50844: "RPCCoefficients",
}
# Bytes of a value by TIFF's number of its type (TIFF 6.0 and the BigTIFF proposal).
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES.update({16: 8, 17: 8, 18: 8})


def tags_cut_off(path: Path) -> List[str]:
    """Names of those of the first page whose values end behind the file; OSError.

    For a file that GDAL has opened: what is no TIFF has none.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        return [
            _NAMES[tag]
            for tag, start, length in _values_apart(file)
            if tag in _NAMES and start + length > size
        ]


def _values_apart(file: BinaryIO) -> Iterator[Tuple[int, int, int]]:
    """Tag, first byte and length of all that does not fit into the first page's table."""
    head = file.read(16)
    is_little = head[:2] == b"II"

    def number(data: bytes) -> int:
        return int.from_bytes(data, "little" if is_little else "big")

    is_big = number(head[2:4]) == 43  # BigTIFF
    count_bytes, entry_bytes, word = (8, 20, 8) if is_big else (2, 12, 4)
    file.seek(min(number(head[8:16] if is_big else head[4:8]), 2**63 - 1))
    count = number(file.read(count_bytes))
    table = file.read(min(count, 4096) * entry_bytes)
    for place in range(0, len(table) - entry_bytes + 1, entry_bytes):
        entry = table[place : place + entry_bytes]
        length = number(entry[4:-word]) * _TYPE_BYTES.get(number(entry[2:4]), 0)
        if length > word:
            yield number(entry[:2]), number(entry[-word:]), length
