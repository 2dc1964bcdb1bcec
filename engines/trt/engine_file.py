"""A TensorRT engine in a file that says what it was built from, by what and for what.

Layout: 4 bytes, the length of the header (unsigned, little-endian); the header, JSON in UTF-8;
the plan as TensorRT wrote it, up to the end of the file. The header is readable without TensorRT,
so an engine of another GPU or version is refused with a comparison instead of a crash.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from pathlib import Path
from typing import BinaryIO, Optional, Tuple, Union

from engines.bundle import FileInfo
from engines.errors import EngineError
from engines.images import sha256_of_file
from engines.trt.engine_header import (
    BUILD_AGAIN,
    MAX_HEADER_BYTES,
    EngineHeader,
    Here,
    header_from_json,
    json_from_header,
    misfits,
)
from engines.trt.places import SUFFIX, not_written, replace_file

__all__ = [
    "SUFFIX",
    "EngineHeader",
    "Here",
    "header_from_engine",
    "misfits",
    "plan_from_engine",
    "write_engine",
]

_LENGTH = struct.Struct("<I")
_PIECE = 1 << 20

# Plans start with these: "ftrt" of TensorRT, "ptrt" of old ones, "vtrt" of TensorRT-RTX 1.7.
_PLAN_STARTS = (b"ftrt", b"ptrt", b"vtrt")


def onnx_of_engine(path: Path, header: EngineHeader) -> Optional[Path]:
    """The ONNX file that the engine was built from, beside it or in its bundle; None if neither."""
    # Its bytes are UTF-8, whatever this system's locale is.
    name = os.fsdecode(Path(header.onnx_file).name.encode("utf-8"))
    for folder in (path.parent, path.parent.parent):
        if (folder / name).is_file() and sha256_of_file(folder / name) == header.onnx_sha256:
            return folder / name
    return None


def write_engine(path: Union[str, os.PathLike[str]], header: EngineHeader, plan: bytes) -> FileInfo:
    """Write header and plan in one step, replacing an older file; returns name, SHA-256 and size.

    `plan_sha256` and `plan_bytes` of the header are checked against `plan`. Raises EngineError for
    a header that could not be read back, OutputError when the folder takes no file.
    """
    path = Path(path)
    digest = hashlib.sha256(plan).hexdigest()
    if (header.plan_bytes, header.plan_sha256) != (len(plan), digest):
        raise EngineError(
            f"a header for a plan of {header.plan_bytes} bytes and a plan of {len(plan)} bytes",
            expected="length and SHA-256 of the plan in its header",
            do=BUILD_AGAIN,
        )
    text = json_from_header(header)
    parts = (_LENGTH.pack(len(text)), text, plan)
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    try:
        replace_file(path, parts)
    except OSError as error:
        raise not_written(path, error) from error
    return FileInfo(path.name, whole.hexdigest(), _LENGTH.size + len(text) + len(plan))


def header_from_engine(path: Union[str, os.PathLike[str]]) -> EngineHeader:
    """Read and check the header; the plan is not read, but the file's size is compared.

    Raises EngineError for a file that is missing, foreign, damaged or not as long as it says.
    """
    with _opened(Path(path)) as file:
        return _header(file, Path(path))


def plan_from_engine(path: Union[str, os.PathLike[str]]) -> Tuple[EngineHeader, bytes]:
    """Header and plan, the plan's length and SHA-256 checked against the header.

    Deserialising a plan runs code that it brings along: the hash shows damage, not bad intent.
    Raises EngineError as `header_from_engine` does, and for a plan that was altered.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(file, path)
        try:
            start = file.tell()
            # In pieces first: a damaged or made-up file takes no memory.
            digest = hashlib.sha256()
            for piece in iter(lambda: file.read(_PIECE), b""):
                digest.update(piece)
            _check_plan(path, header, digest.hexdigest())
            file.seek(start)
            plan = file.read(header.plan_bytes)
        except OSError as error:
            raise _unreadable(path, error) from error
        except MemoryError as error:
            raise EngineError(
                f"{path.name!r} with a plan of {header.plan_bytes} bytes",
                expected="as much free memory",
                do="close other programs, or build it for a smaller input size",
            ) from error
    # Again, of the very bytes that TensorRT gets: the file may have changed in between.
    _check_plan(path, header, hashlib.sha256(plan).hexdigest())
    return header, plan


def _check_plan(path: Path, header: EngineHeader, digest: str) -> None:
    if digest != header.plan_sha256:
        raise EngineError(
            f"{path.name!r} whose plan has SHA-256 {digest}",
            expected=f"{header.plan_sha256}, as its header says",
            do=f"copy it again, or {BUILD_AGAIN}",
        )


def _opened(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise EngineError(
                f"{str(path)!r}, which is not a regular file",
                expected=f"an engine file (*{SUFFIX})",
                do="give the file that `riceseg build` wrote",
            )
        return open(path, "rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> EngineError:
    return EngineError(
        f"{str(path)!r}: {error.strerror}",
        expected="a readable engine file",
        do=f"check its name and its permissions, or {BUILD_AGAIN}",
    )


def _header(file: BinaryIO, path: Path) -> EngineHeader:
    """Leaves the file at the first byte of the plan."""
    try:
        start = file.read(_LENGTH.size)
        size = os.fstat(file.fileno()).st_size
        if start in _PLAN_STARTS:
            raise EngineError(
                f"{path.name!r}, a bare TensorRT plan as trtexec writes it",
                expected="an engine that says what it was built for",
                do="build the engine from the same ONNX file with `riceseg build`",
            )
        if len(start) < _LENGTH.size:
            raise _truncated(path, size, "a header")
        (length,) = _LENGTH.unpack(start)
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise _foreign(path, f"starts with the bytes {start.hex()}")
        text = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    if text and not text.startswith(b"{"):
        raise _foreign(path, f"starts with the bytes {(start + text[:8]).hex()}")
    if len(text) < length:
        raise _truncated(path, size, f"a header of {length} bytes")
    header = header_from_json(text, path.name)
    wanted = _LENGTH.size + length + header.plan_bytes
    if size < wanted:
        raise _truncated(path, size, f"{wanted} bytes")
    if size > wanted:
        raise EngineError(
            f"{path.name!r} of {size} bytes",
            expected=f"{wanted} bytes, as its header says",
            do=f"copy it again, or {BUILD_AGAIN}",
        )
    return header


def _truncated(path: Path, size: int, expected: str) -> EngineError:
    return EngineError(
        f"{path.name!r} that ends after {size} bytes",
        expected=expected,
        do=f"copy it again, or {BUILD_AGAIN}",
    )


def _foreign(path: Path, why: str) -> EngineError:
    return EngineError(
        f"{path.name!r}, no engine of this program (it {why})",
        expected="a length, a JSON header and a TensorRT plan",
        do="give the file that `riceseg build` wrote; of an ONNX file build one",
    )
