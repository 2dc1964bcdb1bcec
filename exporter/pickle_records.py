"""The inert records that a checkpoint's pickle may build, and the allow-list that builds them.

A name on the list is handled by a function of this file and by nothing else; every other name
becomes a `Placeholder`. No module that a pickle names is ever imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Spend = Callable[[int], None]  # takes units off the unpickler's work budget
Builder = Callable[..., object]  # (spend, *arguments of the pickle)

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")

_TORCH_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in {*STORAGE_DTYPES.values(), torch.uint16, torch.uint32, torch.uint64}
}
# Longer names appear in damaged and hostile files only; they end up in messages.
_MAX_NAME = 120
_MAX_DIMENSIONS = 64
# Numbers and fixed-width text: no object arrays, no structures, no dates.
_NUMPY_CODE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|U[0-9]{1,4})")


class Placeholder:
    """Stands where the pickle wanted an object of a class that is not on the list.

    It keeps the name and drops everything else that is done to it.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "..."

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class GlobalName(Placeholder):
    """A class or function that the pickle names; it stays a name."""

    __slots__ = ("key",)

    def __init__(self, module: str, name: str) -> None:
        super().__init__(f"{module}.{name}")
        self.key = (module, name)


@dataclass(frozen=True)
class StorageRef:
    """Part of a storage record: elements `first` .. `first + numel` of `declared` ones."""

    key: str
    dtype: torch.dtype
    numel: int
    first: int
    declared: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that has not been read. `offset` and `stride` count elements of `dtype`."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.dtype.itemsize


class NumpyDtype:
    """`code` as numpy writes it, such as "f4"; `order` is "<", ">", "|" or "="."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def set_state(self, state: object) -> None:
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise UnpicklingError("a numpy dtype with an unreadable state")
        if any(part is not None for part in state[2:5]):
            raise UnpicklingError("a numpy dtype with fields")
        self.order = state[1]


class NumpyArray:
    """`value` is a numeric array, a list of str, or None when the array was neither."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: npt.NDArray[Any] | list[str] | None = None

    def set_state(self, spend: Spend, state: object) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise UnpicklingError("a numpy array with an unreadable state")
        _, shape, dtype, is_fortran, raw = state
        if type(dtype) is NumpyDtype:
            self.value = _array(spend, dtype, shape, raw, "F" if is_fortran else "C")


def whole_numbers(value: object) -> tuple[int, ...]:
    """`value` as a tuple of numbers from 0 to 2^63 - 1; UnpicklingError when it is not that."""
    if not isinstance(value, tuple | list) or len(value) > _MAX_DIMENSIONS:
        raise UnpicklingError("a size that is not a short tuple")
    if any(type(number) is not int or not 0 <= number < 2**63 for number in value):
        raise UnpicklingError("a size, stride or offset that is not a number >= 0")
    return tuple(value)


def dictionary_key(key: object) -> object:
    """`key`, or a Placeholder for one whose hash is not known to be cheap and safe.

    Hashing a tuple nested 10^6 deep overflows the C stack, and whole numbers that are multiples
    of 2^61 - 1 all have the same hash.
    """
    if type(key) in (str, bytes, bool, type(None)) or isinstance(key, Placeholder):
        return key
    if type(key) is int and abs(key) < 2**60:
        return key
    return Placeholder(f"{type(key).__name__} as a dictionary key")


def _lazy_tensor(
    storage: object, dtype: torch.dtype | None, offset: object, size: object, stride: object
) -> object:
    if isinstance(storage, Placeholder):
        return Placeholder(storage.name)
    if type(storage) is not StorageRef:
        raise UnpicklingError("a tensor without a storage")
    sizes, strides = whole_numbers(size), whole_numbers(stride)
    (first,) = whole_numbers((offset,))
    if len(sizes) != len(strides):
        raise UnpicklingError("a tensor whose size and stride differ in length")
    return LazyTensor(storage, dtype or storage.dtype, first, sizes, strides)


def _rebuild_tensor(_: Spend, storage: object, offset: object, size: object, stride: object) -> Any:
    return _lazy_tensor(storage, None, offset, size, stride)


def _rebuild_tensor_v2(
    _: Spend,
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    metadata: object = None,
) -> object:
    if metadata:  # the conjugate and negative bits: the bytes are not the values
        return Placeholder("torch._utils._rebuild_tensor_v2 with a conjugate or negative bit")
    return _lazy_tensor(storage, None, offset, size, stride)


def _rebuild_tensor_v3(
    _: Spend,
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> object:
    if metadata or not isinstance(dtype, GlobalName) or dtype.key[1] not in _TORCH_DTYPES:
        name = dtype.name if isinstance(dtype, Placeholder) else "an unknown dtype"
        return Placeholder(f"torch._utils._rebuild_tensor_v3 with {name}")
    return _lazy_tensor(storage, _TORCH_DTYPES[dtype.key[1]], offset, size, stride)


def _rebuild_parameter(_: Spend, data: object, *rest: object) -> object:
    if isinstance(data, LazyTensor | Placeholder):
        return data
    return Placeholder("torch._utils._rebuild_parameter")


def _size(_: Spend, sizes: object = ()) -> tuple[int, ...]:
    return whole_numbers(sizes)


def _ordered_dict(spend: Spend, pairs: object = ()) -> dict[object, object]:
    if not isinstance(pairs, list | tuple):
        raise UnpicklingError("an OrderedDict that is not made of pairs")
    spend(len(pairs))
    return {dictionary_key(key): value for key, value in pairs}


def _empty_dict(_: Spend, *default: object) -> dict[object, object]:
    return {}


def _encode(spend: Spend, text: object = "", encoding: object = "latin1") -> object:
    """How protocol 2 writes bytes: `_codecs.encode(text, "latin1")`, `bytearray(text, "latin-1")`.

    Without arguments, or with bytes, they are what `bytes` and `bytearray` make of them.
    """
    if type(text) is bytes:
        return text
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        return Placeholder("_codecs.encode")
    spend(len(text) // 64)
    return text.encode("latin-1")


def _numpy_dtype(_: Spend, code: object, *flags: object) -> object:
    if type(code) is not str or _NUMPY_CODE.fullmatch(code) is None:
        return Placeholder(f"numpy.dtype {code!r}" if type(code) is str else "numpy.dtype")
    return NumpyDtype(code.lstrip("<>|="))


def _array(
    spend: Spend, dtype: NumpyDtype, shape: object, raw: object, order: Any
) -> npt.NDArray[Any] | list[str] | None:
    """A view of `raw`, so an array costs no more memory than the pickle itself."""
    if type(raw) is str:  # a pickle of Python 2, where bytes are text
        raw = raw.encode("utf-8", "surrogateescape")
    if type(raw) is not bytes:
        raise UnpicklingError("a numpy array without its bytes")
    sizes = whole_numbers(shape)
    if dtype.code.startswith("U"):
        spend(len(raw) // 4)
        return _texts(dtype, sizes, raw)
    kind = np.dtype(("=" if dtype.order == "|" else dtype.order) + dtype.code)
    if math.prod(sizes) * kind.itemsize != len(raw):
        raise UnpicklingError("a numpy array whose shape does not fit its bytes")
    return np.frombuffer(raw, kind).reshape(sizes, order=order)


def _texts(dtype: NumpyDtype, sizes: tuple[int, ...], raw: bytes) -> list[str] | None:
    width = 4 * int(dtype.code[1:])
    if len(sizes) > 1 or math.prod(sizes) * width != len(raw) or not raw:
        return None
    codec = "utf-32-be" if dtype.order == ">" else "utf-32-le"
    parts = (raw[start : start + width] for start in range(0, len(raw), width))
    return [part.decode(codec).rstrip("\0") for part in parts]


def _numpy_reconstruct(_: Spend, *arguments: object) -> object:
    first = arguments[0] if arguments else None
    if isinstance(first, GlobalName) and first.key == ("numpy", "ndarray"):
        return NumpyArray()
    return Placeholder("numpy._reconstruct")


def _numpy_from_buffer(
    spend: Spend, raw: object, dtype: object, shape: object, order: object = "C"
) -> object:
    array = NumpyArray()
    if type(dtype) is NumpyDtype:
        array.value = _array(spend, dtype, shape, raw, "F" if order == "F" else "C")
    return array


def _numpy_scalar(spend: Spend, dtype: object, raw: object = None) -> object:
    if type(dtype) is not NumpyDtype:
        return Placeholder("numpy scalar")
    value = _array(spend, dtype, (), raw, "C")
    if value is None or isinstance(value, list):
        return value[0] if value else ""
    return value.item()


def _builders() -> dict[tuple[str, str], Builder]:
    builders: dict[tuple[str, str], Builder] = {
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "defaultdict"): _empty_dict,
        ("torch", "Size"): _size,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): _numpy_dtype,
    }
    for module in ("__builtin__", "builtins"):
        builders[module, "bytes"] = builders[module, "bytearray"] = _encode
    for module in ("numpy.core", "numpy._core"):
        builders[f"{module}.multiarray", "_reconstruct"] = _numpy_reconstruct
        builders[f"{module}.multiarray", "scalar"] = _numpy_scalar
        builders[f"{module}.numeric", "_frombuffer"] = _numpy_from_buffer
    return builders


BUILDERS = _builders()
