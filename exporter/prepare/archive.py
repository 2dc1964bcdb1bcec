"""What lies in a zip, from its directory alone; nothing in it is believed, nothing is unpacked."""

from __future__ import annotations

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Iterator

from engines.errors import DatasetError
from exporter.prepare.source_file import MAX_FILE_BYTES, FileRef, ZipMember

# The directory of half a million files; Python needs about ten times as much for its records.
MAX_DIRECTORY_BYTES = 64 << 20

_ENCRYPTED, _UTF8_NAME = 0x1, 0x800  # bits of a member's flags
_LEADS_OUT = re.compile(r"(?:[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$))", re.DOTALL)


def files_in_zip(path: str) -> Iterator[tuple[FileRef, str]]:
    """Each file with the reason for which it cannot be read, "" if there is none.

    Names are decoded as UTF-8 where the zip says so or they can be, else as CP949, in which Korean
    Windows stores them. Raises DatasetError when it is no whole zip.
    """
    for info in _directory(path):
        if info.is_dir():
            continue
        name = _name(info)
        member = ZipMember(
            name,
            info.header_offset,
            info.compress_size,
            info.file_size,
            info.CRC,
            info.compress_type == zipfile.ZIP_DEFLATED,
        )
        yield FileRef(path, member), _unreadable(info, name)


def _unreadable(info: zipfile.ZipInfo, name: str) -> str:
    if _LEADS_OUT.match(name):
        return "its name in the zip leads out of it"
    if info.flag_bits & _ENCRYPTED:
        return "it is encrypted: unpack the zip with its password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "it is packed in an unusual way: unpack the zip"
    if max(info.file_size, info.compress_size) > MAX_FILE_BYTES:
        return f"it has more than {MAX_FILE_BYTES >> 20} MiB"
    return ""


def _name(info: zipfile.ZipInfo) -> str:
    """zipfile takes CP437 for what is not marked as UTF-8, which keeps the bytes."""
    if not info.flag_bits & _UTF8_NAME:
        for encoding in ("utf-8", "cp949"):
            # UnicodeError: other bytes, or a newer zipfile that found the name in Unicode beside.
            with contextlib.suppress(UnicodeError):
                return info.filename.encode("cp437").decode(encoding)
    return info.filename


class _BoundedFile(io.FileIO):
    """From which zipfile reads no directory of whatever size the zip claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of more than {MAX_DIRECTORY_BYTES >> 20} MiB")
        return super().read(size)


def _directory(path: str) -> list[zipfile.ZipInfo]:
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # Damaged bytes raise almost anything in zipfile.
        reason = str(error) or type(error).__name__
    raise DatasetError(
        f"{os.fspath(path)!r}, which cannot be listed ({reason})",
        expected="a whole zip file",
        do="download it again; if it came in parts, join them first",
    )
