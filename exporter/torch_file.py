"""The two containers of torch.save, read without torch.load.

torch.load has read outside of storages that claim more elements than their record holds, and with
`weights_only` it refuses ordinary checkpoints of mmengine and mmcv. Here a tensor is read only
after its whole path was checked: record within the file, storage within its record, offset and
strides within the storage. Nothing is read but what is asked for, so optimizer states cost nothing.

    zip:     NAME/data.pkl, NAME/data/KEY (stored, not compressed), NAME/byteorder
    legacy:  pickles of a magic number, 1001, system information, the object, the list of keys;
             then for each key 8 bytes number of elements and the elements, little-endian
    plain:   one pickle with numpy arrays in it (detectron2's .pkl)
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engines.errors import CheckpointError
from exporter.pickle_records import LazyTensor, StorageRef
from exporter.unpickler import BoundedReader, Unpickled, object_from_pickle

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 0x1
# Tensors that repeat their storage (expanded, overlapping) may need this much more than the file.
_REPEAT_FACTOR, _REPEAT_BYTES = 4, 64_000_000
# Above 2^63 the product of a tensor's other axes overflows, even if one axis has length 0.
_MAX_EMPTY = 2**40


@dataclass(frozen=True)
class Record:
    """Where a storage's bytes lie in the file. `crc` is 0 where the writer left it out."""

    start: int
    nbytes: int
    crc: int = 0


@dataclass(frozen=True)
class TorchFile:
    """A file of torch.save: its object with `LazyTensor`s in it, and where their bytes are."""

    path: Path
    size: int
    root: object
    records: dict[str, Record]
    byte_order: str = "little"

    def tensors(self, lazy: Mapping[str, LazyTensor]) -> dict[str, Tensor]:
        """The named tensors, contiguous, in the file's dtypes.

        Tensors that share a storage in the file may share memory. Raises CheckpointError for one
        that does not lie inside its storage, or for a damaged record.
        """
        _check_total({*lazy.values()}, _REPEAT_FACTOR * self.size + _REPEAT_BYTES, self.path)
        storages: dict[str, bytearray] = {}
        made: dict[LazyTensor, Tensor] = {}
        with self.path.open("rb") as stream:
            for name, tensor in lazy.items():
                if tensor not in made:
                    self._check(name, tensor)
                    key = tensor.storage.key
                    if key not in storages and tensor.nbytes:
                        storages[key] = self._bytes(stream, key)
                    made[tensor] = self._tensor(tensor, storages.get(key, bytearray()))
        return {name: made[tensor] for name, tensor in lazy.items()}

    def _check(self, name: str, tensor: LazyTensor) -> None:
        storage, width = tensor.storage, tensor.storage.dtype.itemsize
        record = self.records.get(storage.key)
        if record is None:
            raise damaged(self.path, f"tensor {name!r} without its data record")
        if storage.declared * width > record.nbytes:
            raise damaged(
                self.path,
                f"tensor {name!r} in a storage of {storage.declared * width} bytes, of which the "
                f"file holds {record.nbytes}",
            )
        if 0 in tensor.size:
            if math.prod(n for n in tensor.size if n) > _MAX_EMPTY:
                raise damaged(self.path, f"tensor {name!r} of an impossible size")
            return
        last = tensor.offset + sum(
            (n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True)
        )
        if (last + 1) * tensor.dtype.itemsize > storage.numel * width:
            raise damaged(self.path, f"tensor {name!r} reaching beyond its storage")

    def _bytes(self, stream: BinaryIO, key: str) -> bytearray:
        record = self.records[key]
        data = bytearray(record.nbytes)
        stream.seek(record.start)
        if stream.readinto(data) != record.nbytes:  # type: ignore[attr-defined]
            raise damaged(self.path, f"data record {key!r} cut short")
        if record.crc and zlib.crc32(data) != record.crc:
            raise damaged(self.path, f"data record {key!r} with a wrong checksum")
        return data

    def _tensor(self, tensor: LazyTensor, data: bytearray) -> Tensor:
        if 0 in tensor.size:
            return torch.empty(tensor.size, dtype=tensor.dtype)
        storage = tensor.storage
        start = storage.first * storage.dtype.itemsize
        count = storage.numel * storage.dtype.itemsize // tensor.dtype.itemsize
        if tensor.dtype is torch.bool:  # a byte other than 0 and 1 is no valid bool
            flat = torch.frombuffer(data, dtype=torch.uint8, count=count, offset=start) != 0
        else:
            flat = torch.frombuffer(data, dtype=tensor.dtype, count=count, offset=start)
        # The stride of an axis of length 1 is never used, and may be anything.
        steps = [step if n > 1 else 1 for n, step in zip(tensor.size, tensor.stride, strict=True)]
        view = flat.as_strided(tensor.size, steps, tensor.offset).contiguous()
        return view if self.byte_order == sys.byteorder else _byte_swapped(view)


def torch_file_from_path(path: Path) -> TorchFile:
    """Opens either container; no tensor is read yet. Raises CheckpointError."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(2) == b"PK":
            return _from_zip(path, stream, size)
        stream.seek(0)
        return _from_pickles(path, stream, size)


def tensor_from_array(array: npt.NDArray[Any]) -> Tensor:
    """A copy of a numeric numpy array in this machine's byte order."""
    if array.dtype == np.bool_:
        return torch.from_numpy(array.view(np.uint8) != 0)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a file that contradicts itself."""
    return CheckpointError(
        f"{path.name}, which is damaged or was cut short: {what}",
        expected="a complete checkpoint file",
        do="copy or download it again and compare its size or SHA-256 with the original",
    )


def _byte_swapped(tensor: Tensor) -> Tensor:
    parts = (
        tensor.numpy() if tensor.dtype is not torch.bfloat16 else tensor.view(torch.int16).numpy()
    )
    return torch.from_numpy(parts.byteswap()).view(tensor.dtype)


def _check_total(tensors: set[LazyTensor], limit: int, path: Path) -> None:
    total = sum(tensor.nbytes for tensor in tensors)
    if total > limit:
        raise damaged(path, f"its tensors would fill {total} bytes, more than {limit}")


def _from_zip(path: Path, stream: BinaryIO, size: int) -> TorchFile:
    try:
        entries = zipfile.ZipFile(stream).infolist()
    except Exception as error:  # BadZipFile, NotImplementedError, struct.error, ValueError, ...
        raise damaged(path, f"no readable zip directory ({error})") from error
    by_name = {entry.filename: entry for entry in entries}
    if len(by_name) != len(entries):
        raise damaged(path, "two zip records with the same name")
    _check_kind(path, by_name)
    roots = [name for name in by_name if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError(
            f"{path.name}, a zip archive with {len(roots)} files data.pkl",
            expected="the one that torch.save writes",
            do="if the archive holds a checkpoint, unpack it and give that file",
        )
    folder = roots[0].removesuffix("data.pkl")

    def content(name: str) -> bytes:
        record = _zip_record(path, stream, by_name[name], size)
        stream.seek(record.start)
        data = stream.read(record.nbytes)
        if record.crc and zlib.crc32(data) != record.crc:
            raise damaged(path, f"record {name!r} with a wrong checksum")
        return data

    pickled = _unpickled(content(roots[0]), path)
    order = content(folder + "byteorder") if folder + "byteorder" in by_name else b"little"
    if order not in (b"little", b"big"):
        raise damaged(path, "an unknown byte order")
    records = {
        key: _zip_record(path, stream, by_name[f"{folder}data/{key}"], size)
        for key in pickled.storages
        if f"{folder}data/{key}" in by_name
    }
    return TorchFile(path, size, pickled.root, records, order.decode())


def _check_kind(path: Path, names: Mapping[str, object]) -> None:
    """Other things that are zip archives with a data.pkl or a .pt name."""
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path.name}, a TorchScript archive (it contains code/)",
            expected="a checkpoint with a state dict",
            do="give the checkpoint that the TorchScript file was made from",
        )
    if any(
        name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names
    ):
        raise CheckpointError(
            f"{path.name}, a program of torch.export",
            expected="a checkpoint with a state dict",
            do="give the checkpoint that the program was made from",
        )


def _zip_record(path: Path, stream: BinaryIO, entry: zipfile.ZipInfo, size: int) -> Record:
    """Where the record's bytes are, after comparing the directory with the file itself."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
        raise CheckpointError(
            f"{path.name}, whose record {entry.filename!r} is compressed or encrypted",
            expected="stored records, as torch.save writes them",
            do="unpack it and pack it again without compression: zip -0 -r NEW_FILE FOLDER",
        )
    inside = 0 <= entry.header_offset <= size  # zipfile takes any 64-bit number, minus a correction
    stream.seek(entry.header_offset if inside else size)
    header = stream.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise damaged(path, f"record {entry.filename!r} is not where the directory says")
    name_length, extra_length = _LOCAL_HEADER.unpack(header)[-2:]
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if entry.compress_size != entry.file_size or start + entry.file_size > size:
        raise damaged(path, f"record {entry.filename!r} reaches beyond the end of the file")
    return Record(start, entry.file_size, entry.CRC)


def _unpickled(data: bytes, path: Path) -> Unpickled:
    return object_from_pickle(BoundedReader(io.BytesIO(data), len(data)), file=path.name)


def _from_pickles(path: Path, stream: BinaryIO, size: int) -> TorchFile:
    reader = BoundedReader(stream, size)
    first = object_from_pickle(reader, file=path.name)
    if type(first.root) is dict:
        return TorchFile(path, size, first.root, {})
    if type(first.root) is not int or first.root != _MAGIC_NUMBER:
        raise CheckpointError(
            f"{path.name}, a pickle of {_kind(first.root)}",
            expected="a checkpoint: a dictionary with a state dict in it",
            do="save the weights with torch.save(model.state_dict(), FILE)",
        )
    version = object_from_pickle(reader, file=path.name).root
    if type(version) is not int or version != _PROTOCOL_VERSION:
        raise damaged(path, "an unknown version of the old torch.save format")
    object_from_pickle(
        reader, file=path.name
    )  # the writer's system; the data does not depend on it
    pickled = object_from_pickle(reader, file=path.name)
    keys = object_from_pickle(reader, file=path.name).root
    return TorchFile(path, size, pickled.root, _legacy_records(path, stream, size, pickled, keys))


def _legacy_records(
    path: Path, stream: BinaryIO, size: int, pickled: Unpickled, keys: object
) -> dict[str, Record]:
    if type(keys) is not list or len(keys) > len(pickled.storages):
        raise damaged(path, "its list of storages does not fit its tensors")
    records: dict[str, Record] = {}
    for key in keys:
        storage = pickled.storages.get(key) if type(key) is str else None
        header = stream.read(8)
        if storage is None or key in records or len(header) < 8:
            raise damaged(path, "its list of storages does not fit its data")
        records[key] = _legacy_record(path, stream, size, storage, struct.unpack("<q", header)[0])
    return records


def _legacy_record(
    path: Path, stream: BinaryIO, size: int, storage: StorageRef, numel: int
) -> Record:
    record = Record(stream.tell(), numel * storage.dtype.itemsize)
    if numel != storage.declared or record.start + record.nbytes > size:
        raise damaged(path, f"a storage of {storage.declared} elements is not complete")
    stream.seek(record.nbytes, 1)
    return record


def _kind(value: object) -> str:
    name = getattr(value, "name", None)
    return f"an object of class {name}" if isinstance(name, str) else type(value).__name__
