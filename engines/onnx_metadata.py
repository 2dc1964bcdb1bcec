"""The metadata of an ONNX file, without a package that reads ONNX and without loading the graph."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, Tuple, Union

# Of ModelProto the field `metadata_props`, and of its entries `key` and `value`.
_ENTRIES, _KEY, _VALUE = 14, 1, 2

_MAX_FIELDS = 10_000  # of one message; ModelProto has a dozen, some of which repeat
_MAX_ENTRY_BYTES = 1_000_000

# How protobuf says how long a field is.
_VARINT, _EIGHT_BYTES, _COUNTED, _FOUR_BYTES = 0, 1, 2, 5


def metadata_from_onnx(path: Union[str, os.PathLike[str]]) -> Dict[str, str]:
    """What ONNX Runtime calls the `custom_metadata_map`; {} where the file is no ONNX file.

    Weights and nodes are skipped, so that the time does not grow with the file. Raises OSError.
    """
    path = Path(path)
    found: Dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            for _, entry in _fields(file, path.stat().st_size, (_ENTRIES,)):
                pairs = dict(_fields(io.BytesIO(entry), len(entry), (_KEY, _VALUE)))
                found[pairs.get(_KEY, b"").decode()] = pairs.get(_VALUE, b"").decode()
    except ValueError:
        return {}
    return found


def _fields(file: BinaryIO, size: int, wanted: Tuple[int, ...]) -> Iterator[Tuple[int, bytes]]:
    """Number and bytes of each counted field that is wanted; ValueError in what is no message."""
    for _ in range(_MAX_FIELDS):
        if file.tell() == size:
            return
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _varint(file)
            continue
        lengths = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}
        length = _varint(file) if kind == _COUNTED else lengths.get(kind, size + 1)
        if length > size - file.tell():
            raise ValueError("a field that goes beyond its message")
        if kind == _COUNTED and number in wanted and length <= _MAX_ENTRY_BYTES:
            yield number, file.read(length)
        else:
            file.seek(length, os.SEEK_CUR)
    raise ValueError("more fields than a model has")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number without an end")
