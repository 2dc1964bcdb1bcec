"""Reads a checkpoint's pickle without running anything that it asks for.

Tensors come back as `LazyTensor`, numpy's numbers as numbers and arrays, everything that is not on
the allow-list of `exporter.pickle_records` as an inert `Placeholder`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

from engines.errors import CheckpointError
from exporter.pickle_records import (
    BUILDERS,
    STORAGE_DTYPES,
    STORAGE_MODULES,
    GlobalName,
    NumpyArray,
    NumpyDtype,
    Placeholder,
    StorageRef,
    whole_numbers,
)
from exporter.pickle_records import dictionary_key as _key

# One opcode makes at most about 100 bytes and takes about a microsecond. A checkpoint of 2000
# parameters with its optimizer has about 300 000 opcodes.
_MAX_WORK = 10_000_000
_MAX_LINE = 4096

# What protocols 0 and 1 alone write, text that is converted by Python; the extension registry,
# which is a cache of real objects; and out-of-band buffers, which no file has.
_REFUSED_OPCODES = b"LFSVpgPi\x82\x83\x84\x97\x98"


@dataclass(frozen=True)
class Unpickled:
    """One pickle: its object, and the storages it refers to by their keys."""

    root: object
    storages: dict[str, StorageRef]


class BoundedReader:
    """The rest of a file. A pickle's own lengths never decide how much memory is asked for."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size - stream.tell()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        data = self._stream.readline(min(_MAX_LINE, self._left))
        self._left -= len(data)
        return data


class _Opcodes(dict[int, Callable[..., None]]):
    """The unpickler's table, which also counts how often it is asked."""

    left = _MAX_WORK

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise UnpicklingError("more than ten million steps")

    def __getitem__(self, code: int) -> Callable[..., None]:
        self.spend(1)
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[..., None]:
        raise UnpicklingError(f"opcode {code:#04x}, which a checkpoint has no use for")


# The pure-Python base on purpose: its memo is a dict, so the index of a LONG_BINPUT allocates
# nothing, while the C unpickler makes an array of that length (4e9 entries from five bytes).
class AllowListUnpickler(pickle._Unpickler):
    """Knows names, not objects: `find_class` imports nothing, and only `BUILDERS` build."""

    if TYPE_CHECKING:
        stack: list[Any]
        append: Callable[[Any], None]
        read: Callable[[int], bytes]
        readline: Callable[[], bytes]
        pop_mark: Callable[[], list[Any]]

    def __init__(self, reader: BoundedReader) -> None:
        # Python 2 wrote str as bytes: what is not UTF-8 among them survives as surrogates.
        super().__init__(reader, encoding="utf-8", errors="surrogateescape")
        self.storages: dict[str, StorageRef] = {}
        self._opcodes = _Opcodes(_TABLE)
        self.dispatch = self._opcodes  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> GlobalName:
        self._opcodes.spend((len(module) + len(name)) // 64)
        return GlobalName(module, name)

    def persistent_load(self, pid: Any) -> object:
        if type(pid) is tuple and len(pid) >= 2 and pid[0] == "module":
            return Placeholder(pid[1].name if isinstance(pid[1], Placeholder) else "a module")
        if type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage":
            return self._storage(*pid[1:])
        raise UnpicklingError("a persistent id that is not a storage")

    def _storage(
        self, kind: object, key: object, location: object, numel: object, view: object = None
    ) -> StorageRef:
        if (
            not isinstance(kind, GlobalName)
            or kind.key[0] not in STORAGE_MODULES
            or kind.key[1] not in STORAGE_DTYPES
            or type(key) is not str
        ):
            raise UnpicklingError("a storage of an unknown type")
        (declared,) = whole_numbers((numel,))
        root = StorageRef(key, STORAGE_DTYPES[kind.key[1]], declared, 0, declared)
        if self.storages.setdefault(key, root) != root:
            raise UnpicklingError("two storages with the same key")
        if view is None:
            return root
        if type(view) is not tuple or len(view) != 3:
            raise UnpicklingError("an unreadable view of a storage")
        first, part = whole_numbers(view[1:])
        if first + part > declared:
            raise UnpicklingError("a view outside its storage")
        return StorageRef(key, root.dtype, part, first, declared)

    def _built(self, what: object, arguments: object) -> object:
        if not isinstance(what, GlobalName):
            raise UnpicklingError("a call of something that is not a name")
        builder = BUILDERS.get(what.key)
        if builder is None:
            return Placeholder(what.name)
        if type(arguments) is not tuple:
            raise UnpicklingError("a call without a tuple of arguments")
        return builder(self._opcodes.spend, *arguments)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._built(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments: nothing on the list takes any
        self.load_reduce()

    def load_obj(self) -> None:
        what, *arguments = self.pop_mark()
        self.append(self._built(what, tuple(arguments)))

    def load_build(self) -> None:
        """States are for numpy alone; all others are dropped, `_metadata` of a state dict too."""
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is NumpyDtype:
            target.set_state(state)
        elif type(target) is NumpyArray:
            target.set_state(self._opcodes.spend, state)

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Placeholder):
            raise UnpicklingError("items for something that is not a list")

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, Placeholder):
            raise UnpicklingError("keys for something that is not a dictionary")

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_set(self) -> None:
        self.append(Placeholder("builtins.set"))

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.load_set()

    def load_additems(self) -> None:
        self.pop_mark()
        if not isinstance(self.stack[-1], Placeholder):
            raise UnpicklingError("items for something that is not a set")

    def load_bytearray(self) -> None:
        """As bytes: the inherited one fills memory of the stated length before it reads."""
        size = int.from_bytes(self.read(8), "little")
        self.append(self.read(size))

    def load_int(self) -> None:
        """Python 2 writes whole numbers beyond 32 bits as decimal digits."""
        line = self.readline()
        if len(line) > 32:
            raise UnpicklingError("a number of more than 30 digits")
        self.append(int(line))


def _table() -> dict[int, Callable[..., None]]:
    inherited: dict[int, Callable[..., None]] = dict(pickle._Unpickler.dispatch)
    for code in _REFUSED_OPCODES:
        del inherited[code]
    own = AllowListUnpickler
    return inherited | {
        pickle.REDUCE[0]: own.load_reduce,
        pickle.NEWOBJ[0]: own.load_reduce,  # (class, arguments) lie on the stack in both
        pickle.NEWOBJ_EX[0]: own.load_newobj_ex,
        pickle.OBJ[0]: own.load_obj,
        pickle.BUILD[0]: own.load_build,
        pickle.APPEND[0]: own.load_append,
        pickle.APPENDS[0]: own.load_appends,
        pickle.SETITEM[0]: own.load_setitem,
        pickle.SETITEMS[0]: own.load_setitems,
        pickle.DICT[0]: own.load_dict,
        pickle.EMPTY_SET[0]: own.load_set,
        pickle.FROZENSET[0]: own.load_frozenset,
        pickle.ADDITEMS[0]: own.load_additems,
        pickle.BYTEARRAY8[0]: own.load_bytearray,
        pickle.INT[0]: own.load_int,
    }


_TABLE = _table()


def object_from_pickle(reader: BoundedReader, *, file: str) -> Unpickled:
    """The next pickle of `reader`, which is left just behind it.

    `file` is for the message only. Raises CheckpointError for whatever is wrong with the pickle:
    cut short, damaged, hostile, or of a protocol below 2.
    """
    unpickler = AllowListUnpickler(reader)
    try:
        root = unpickler.load()
    except Exception as error:  # of any kind: the bytes decide which line of the base fails
        reason = "it ends too early" if isinstance(error, EOFError) else str(error)[:200]
        raise CheckpointError(
            f"{file}, whose pickle cannot be read ({type(error).__name__}: {reason})",
            expected="a complete file written by torch.save",
            do="copy or download it again and compare its size or SHA-256 with the original",
        ) from error
    return Unpickled(root, unpickler.storages)
