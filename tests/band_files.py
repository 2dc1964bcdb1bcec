"""TIFF files for the tests, written from the specification; other libraries write the rest."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Band = NDArray[Any]
Value = tuple[int, bytes]  # the number of the type, and the values as stored

_SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 11: 4, 12: 8, 16: 8}


def shorts(*values: int, order: str = "<") -> Value:
    return 3, struct.pack(f"{order}{len(values)}H", *values)


def longs(*values: int, order: str = "<") -> Value:
    return 4, struct.pack(f"{order}{len(values)}I", *values)


def doubles(*values: float, order: str = "<") -> Value:
    return 12, struct.pack(f"{order}{len(values)}d", *values)


def text(value: str) -> Value:
    return 2, value.encode() + b"\0"


def tags_of(band: Band, place: int, order: str = "<") -> dict[int, Value]:
    """What a plain uncompressed band in one strip needs; `place` is where its pixels begin."""
    height, width = band.shape[:2]
    return {
        256: longs(width, order=order),
        257: longs(height, order=order),
        258: shorts(band.dtype.itemsize * 8, order=order),
        259: shorts(1, order=order),
        262: shorts(1, order=order),
        273: longs(place, order=order),
        277: shorts(1, order=order),
        278: longs(height, order=order),
        279: longs(band.nbytes, order=order),
        339: shorts(_SAMPLE_FORMATS[band.dtype.kind], order=order),
    }


def tiff(
    band: Band, *, order: str = "<", big: bool = False, changed: Mapping[int, Value | None] = {}
) -> bytes:
    """A file with one band in one strip; `changed` tags replace its own, None takes one away."""
    start = 16 if big else 8
    pixels = band.astype(band.dtype.newbyteorder(order)).tobytes()
    tags = {**tags_of(band, start, order), **changed}
    kept = {tag: value for tag, value in tags.items() if value is not None}
    return tiff_of_parts(pixels, [sorted(kept.items())], order=order, big=big)


def tiff_of_parts(
    pixels: bytes,
    pages: Sequence[Sequence[tuple[int, Value]]],
    *,
    order: str = "<",
    big: bool = False,
    last_page: int = 0,
) -> bytes:
    """Header, pixels and directories; `last_page` is where the last one says the next begins."""
    header_bytes, place_kind, count_kind = (16, "Q", "Q") if big else (8, "I", "H")
    body = pixels + b"\0" * (len(pixels) % 2)
    first = header_bytes + len(body)
    for number, tags in enumerate(pages):
        table, extra = b"", b""
        place_bytes = struct.calcsize(place_kind)
        size = struct.calcsize(order + count_kind) + len(tags) * (4 + 2 * place_bytes) + place_bytes
        place = header_bytes + len(body)
        for tag, (kind, data) in tags:
            count = len(data) // _BYTES[kind]
            if len(data) > place_bytes:
                value = struct.pack(order + place_kind, place + size + len(extra))
                extra += data + b"\0" * (len(data) % 2)
            else:
                value = data.ljust(place_bytes, b"\0")
            table += struct.pack(f"{order}HH{place_kind}", tag, kind, count) + value
        following = place + size + len(extra) if number + 1 < len(pages) else last_page
        body += struct.pack(order + count_kind, len(tags)) + table
        body += struct.pack(order + place_kind, following) + extra
    magic = b"II" if order == "<" else b"MM"
    if big:
        return magic + struct.pack(f"{order}HHHQ", 43, 8, 0, first) + body
    return magic + struct.pack(f"{order}HI", 42, first) + body


def measured(hw: tuple[int, int] = (37, 53), dtype: str = "float32", seed: int = 0) -> Band:
    """Values 0..200 that differ from pixel to pixel; whole ones where the type has no others."""
    values = np.random.default_rng(seed).random(hw) * 200
    return np.asarray(values.astype(dtype))


def saved_band(path: Path, band: Band, **options: Any) -> Path:
    path.write_bytes(tiff(band, **options))
    return path


def xmp(band_name: str) -> Value:
    """The packet of a MicaSense file, shortened to what is read of it."""
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
        'xmlns:Camera="http://pix4d.com/camera/1.0">\n'
        f"<Camera:BandName>{band_name}</Camera:BandName>\n"
        "<Camera:CentralWavelength>475</Camera:CentralWavelength></rdf:Description></rdf:RDF>"
        "</x:xmpmeta>"
    )
    return 7, packet.encode()
