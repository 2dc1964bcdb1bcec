"""PyTorch's labels, stored at export, so that a device without torch can be compared with them.

`reference.npz` is a zip of .npy arrays. The key of each is the SHA-256 of an image file, its value
(H, W) uint8: labels at network resolution, padding included. The file may come from anywhere, so
it is not given to numpy.load: names, sizes and types are checked before anything is unpacked.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional, Tuple, Union

import numpy as np

from engines.bundle import Bundle, verified_path
from engines.errors import BundleError
from engines.resize import Labels

if TYPE_CHECKING:
    from types import TracebackType

FILES_KEY = "reference"  # in the bundle's `files`

_NAME = re.compile(r"([0-9a-f]{64})\.npy")
_MAGIC = b"\x93NUMPY\x01\x00"
# numpy fills its header up to a multiple of 64 with blanks: 118 characters for two dimensions.
_MAX_HEADER = 1024
_MAX_ENTRIES = 1_000_000
_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ReferenceLabels:
    """An open `reference.npz`: call it with the SHA-256 of an image file for its labels.

    Satisfies `engines.evaluation.evaluate.References`. For one thread. Attributes: `path`, `hw` and
    `count`, the number of images in it.
    """

    def __init__(self, path: Union[str, os.PathLike[str]], *, hw: Tuple[int, int]) -> None:
        """Read the file's directory; BundleError unless every entry is labels of size `hw`."""
        self.path, self.hw = Path(path), hw
        try:
            self._zip = zipfile.ZipFile(os.fspath(path))
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise self._refused(f"that cannot be read ({error})") from error
        try:
            self._entries = self._checked_entries()
        except BundleError:
            self._zip.close()
            raise
        self.count = len(self._entries)

    def __call__(self, sha256: str) -> Optional[Labels]:
        """Labels (H, W) uint8, newly allocated, of the image with that hash; None without any."""
        entry = self._entries.get(sha256)
        if entry is None:
            return None
        try:
            # zipfile gives at most the size that the directory tells, and checks its CRC.
            with self._zip.open(entry) as stored:
                data = stored.read(entry.file_size)
        except Exception as error:  # zlib, zipfile and the disk each raise their own.
            raise self._refused(f"whose entry {entry.filename} is damaged ({error})") from error
        return self._labels_from_npy(data, entry.filename)

    def close(self) -> None:
        """Close the file; harmless when called twice."""
        self._zip.close()

    def __enter__(self) -> ReferenceLabels:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _checked_entries(self) -> Dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        if not 0 < len(infos) <= _MAX_ENTRIES:
            raise self._refused(f"with {len(infos)} entries")
        entries: Dict[str, zipfile.ZipInfo] = {}
        pixels = self.hw[0] * self.hw[1]
        for info in infos:
            name = _NAME.fullmatch(info.filename)
            if name is None or name.group(1) in entries:
                raise self._refused(f"with the entry {info.filename[:80]!r}")
            if info.compress_type not in _KINDS or info.flag_bits & 1:
                raise self._refused(f"whose entry {info.filename} is encrypted or oddly packed")
            if not pixels < info.file_size <= pixels + _MAX_HEADER:
                raise self._refused(f"whose entry {info.filename} has {info.file_size} bytes")
            entries[name.group(1)] = info
        return entries

    def _labels_from_npy(self, data: bytes, name: str) -> Labels:
        """The array in a .npy file of version 1.0; its header is compared, never evaluated."""
        start = len(_MAGIC) + 2
        (length,) = struct.unpack("<H", data[start - 2 : start])
        header = "".join(data[start : start + length].decode("latin-1").split())
        shape = f"({self.hw[0]},{self.hw[1]})"
        wanted = f"{{'descr':'|u1','fortran_order':False,'shape':{shape},}}"
        pixels = data[start + length :]
        if not data.startswith(_MAGIC) or header != wanted or len(pixels) != np.prod(self.hw):
            raise self._refused(f"whose entry {name} is described as {header[:80]!r}")
        return np.frombuffer(pixels, np.uint8).reshape(self.hw).copy()

    def _refused(self, what: str) -> BundleError:
        return BundleError(
            f"{str(self.path)!r}, {what}",
            expected=f"labels of {self.hw[0]}x{self.hw[1]} pixels, uint8, named by SHA-256, as "
            "`riceseg export --keep-reference` writes them",
            do="copy the bundle from where it was made, or export the model again",
        )


def reference_from_bundle(
    folder: Union[str, os.PathLike[str]], bundle: Bundle
) -> Optional[ReferenceLabels]:
    """The bundle's stored labels, opened; None for a bundle made without them.

    Raises BundleError when the file is not the recorded one or cannot be used.
    """
    info = bundle.files.get(FILES_KEY)
    if info is None:
        return None
    return ReferenceLabels(verified_path(folder, info), hw=bundle.input.hw)
