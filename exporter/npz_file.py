"""The arrays of a numpy archive (.npz), read without numpy.load.

numpy allocates what an array's header claims before it reads the numbers, unpacks whatever was
compressed, and unpickles on request. Here every array's claim is compared with the bytes that the
archive's directory gives it, before anything is read, and all of them with the size of the file.

    .npz: a zip archive; each member NAME.npy is a header (type, order, shape) and the numbers
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from engines.errors import CheckpointError
from exporter.torch_file import damaged

Array = NDArray[Any]

SUFFIX = ".npy"
# Weights hardly compress: an archive that unpacks to more was made to fill the memory.
_UNPACK_FACTOR, _UNPACK_BYTES = 4, 64_000_000
_MAX_ARRAYS = 100_000
_MAX_HEADER = 10_000  # characters; the header of a plain array has 128 bytes
_ENCRYPTED = 0x1
_NUMBERS = "fiub"  # kinds of dtype: floats, integers, truth values; no objects, no records
_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    SyntaxError,
    RecursionError,
    OverflowError,
    RuntimeError,  # includes NotImplementedError
)


def looks_like_npz(head: bytes) -> bool:
    """From the first bytes of a file: a zip archive whose first member is an array."""
    if not head.startswith(b"PK\x03\x04") or len(head) < 30:
        return False
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].endswith(SUFFIX.encode())


def arrays_from_npz(path: Path) -> dict[str, Array]:
    """Name (without ".npy") -> array of numbers, in the file's order.

    Raises CheckpointError for a damaged archive, for one that unpacks to much more than its size,
    and for arrays of anything but numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, path)
            return {
                member.filename.removesuffix(SUFFIX): _array(archive, member, path)
                for member in members
            }
    except _ERRORS as error:
        raise damaged(path, f"{type(error).__name__}: {error}"[:200]) from error


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    names = [member.filename for member in members]
    if not names or not all(name.endswith(SUFFIX) for name in names):
        raise damaged(path, "not every member of the archive is an array (.npy)")
    if len(set(names)) < len(names) or len(names) > _MAX_ARRAYS:
        raise damaged(path, f"{len(names)} arrays, {len(set(names))} different names")
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise damaged(path, "the archive is encrypted")
    size, total = path.stat().st_size, sum(member.file_size for member in members)
    if total > _UNPACK_FACTOR * size + _UNPACK_BYTES:
        raise damaged(path, f"{size} bytes that unpack to {total}")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Array:
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(cast(BinaryIO, stream))
        if dtype.kind not in _NUMBERS or dtype.itemsize > 8:
            raise CheckpointError(
                f"{path.name}, where {member.filename!r} holds {str(dtype)[:60]}",
                expected="arrays of numbers",
                do="save float32 arrays with numpy.savez",
            )
        count = math.prod(shape)
        data = stream.read(count * dtype.itemsize + 1 if count else 1)
        if len(data) != count * dtype.itemsize:
            raise damaged(path, f"{member.filename!r} has not the bytes of its shape {shape}")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return np.array(array, dtype.newbyteorder("="), order="C")


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the array format")
    shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    if len(shape) > 8 or any(side < 0 or side > 2**40 for side in shape):
        raise ValueError(f"an array of shape {str(shape)[:60]}")
    return shape, fortran, dtype
