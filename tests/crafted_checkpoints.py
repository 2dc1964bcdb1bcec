"""Checkpoint files made by hand, for what torch.save would never write."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Storage:
    """What a tensor's pickle says about its storage; `view` is for the legacy container."""

    key: str
    numel: int
    view: tuple[str, int, int] | None = None
    legacy: bool = False

    def persistent_id(self) -> tuple[object, ...]:
        identity = ("storage", torch.FloatStorage, self.key, "cpu", self.numel)
        return (*identity, self.view) if self.legacy else identity


@dataclass(frozen=True)
class Claim:
    """A float32 tensor as its pickle claims it to be, true or not."""

    storage: Storage
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    def __reduce__(self) -> Any:
        hooks = OrderedDict[int, object]()
        arguments = (self.storage, self.offset, self.size, self.stride, False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> Any:
        return value.persistent_id() if isinstance(value, Storage) else None


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def write_zip(
    path: Path,
    value: object,
    records: Mapping[str, bytes],
    *,
    compression: int = zipfile.ZIP_STORED,
    others: Mapping[str, bytes] | None = None,
) -> Path:
    """The container of torch.save since 1.6, with the data records as given."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled(value))
        for key, data in records.items():
            archive.writestr(f"model/data/{key}", data)
        for name, data in (others or {}).items():
            archive.writestr(name, data)
    return path


def write_legacy(
    path: Path, value: object, storages: Mapping[str, tuple[int, bytes]], version: int = 1001
) -> Path:
    """The container of torch.save before 1.6: key -> (number of elements, data)."""
    with path.open("wb") as stream:
        for part in (MAGIC_NUMBER, version, {"little_endian": True}):
            pickle.dump(part, stream, 2)
        stream.write(pickled(value))
        pickle.dump(list(storages), stream, 2)
        for numel, data in storages.values():
            stream.write(struct.pack("<q", numel) + data)
    return path


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)
