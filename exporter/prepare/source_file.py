"""A file of the raw data set, in a folder or inside a zip, read without unpacking."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from engines.errors import DatasetError
from exporter.prepare.checksum import crc32

MAX_FILE_BYTES = 256 << 20  # a band of 8192x8192 in float32

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: its mark, lengths of name and extra
_LOCAL_MARK = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class ZipMember:
    """Where a zip's directory says that a file lies; `name` with its folders, as decoded."""

    name: str
    offset: int
    packed_bytes: int
    bytes: int
    crc: int
    deflated: bool


@dataclass(frozen=True, slots=True)
class FileRef:
    """Can be pickled; `path` is the file itself, or the zip that holds `member`."""

    path: str
    member: ZipMember | None = None

    def __str__(self) -> str:
        """For messages: the path, and the name inside a zip."""
        return self.path if self.member is None else f"{self.path}: {self.member.name}"

    @property
    def container(self) -> str:
        """The zip, or the folder that the file lies in."""
        return os.path.dirname(self.path) if self.member is None else self.path

    @property
    def name(self) -> str:
        """Without folders, whichever system's separators a zip may have."""
        if self.member is None:
            return os.path.basename(self.path)
        return self.member.name.replace("\\", "/").rpartition("/")[2]

    def read(self) -> bytes:
        """All of it, at most `MAX_FILE_BYTES`.

        Raises DatasetError when it cannot be read, is larger, or is not what the zip's directory
        says. A zip is not listed again for each of its files, which would take longer than the
        files: its directory has been read when this was made.
        """
        try:
            with open(self.path, "rb") as file:
                if self.member is not None:
                    return self._unpacked(file, self.member)
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        if len(data) > MAX_FILE_BYTES:
            raise self._unreadable(f"more than {MAX_FILE_BYTES >> 20} MiB")
        return data

    def stamp(self) -> tuple[int, ...]:
        """Another one where the content is another: size and CRC in a zip, else size and time.

        Raises DatasetError when the file is gone.
        """
        if self.member is not None:
            return self.member.bytes, self.member.crc
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        return status.st_size, status.st_mtime_ns

    def _unpacked(self, file: BinaryIO, member: ZipMember) -> bytes:
        if max(member.bytes, member.packed_bytes) > MAX_FILE_BYTES:
            raise self._unreadable(f"more than {MAX_FILE_BYTES >> 20} MiB")
        if member.offset >= os.fstat(file.fileno()).st_size:  # up to what no seek can take
            raise self._unreadable("the zip does not hold it where it says")
        file.seek(member.offset)
        header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_MARK):
            raise self._unreadable("the zip does not hold it where it says")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        file.seek(name_bytes + extra_bytes, 1)
        data = file.read(member.packed_bytes)
        if member.deflated and len(data) == member.packed_bytes:
            data = self._inflated(data, member.bytes)
        if len(data) != member.bytes or crc32(data) != member.crc:
            raise self._unreadable("the zip is cut short or damaged")
        return data

    def _inflated(self, packed: bytes, size: int) -> bytes:
        """At most one byte more than `size`, whatever `packed` would become."""
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
        except zlib.error as error:
            raise self._unreadable("the zip is damaged") from error

    def _unreadable(self, reason: str) -> DatasetError:
        return DatasetError(
            f"{str(self)!r}, which cannot be read: {reason}",
            expected="a whole file of the data set",
            do="copy or download it again, or leave it out",
        )
