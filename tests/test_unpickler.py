from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import CheckpointError
from exporter import unpickler
from exporter.pickle_records import GlobalName, LazyTensor, NumpyArray, Placeholder
from exporter.unpickler import BoundedReader, Unpickled, object_from_pickle

PROTO_2 = b"\x80\x02"
PROTO_4 = b"\x80\x04"


class Runs:
    """Pickles into a call of anything."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Stateful:
    """An ordinary object of a class that is not on the list."""

    def __init__(self) -> None:
        self.values = [1, 2]


class Listing(list[int]):
    """Pickles into NEWOBJ and APPENDS."""


class Table(dict[str, int]):
    """Pickles into NEWOBJ and SETITEMS."""


def unpickled(data: bytes) -> Unpickled:
    return object_from_pickle(BoundedReader(io.BytesIO(data), len(data)), file="a.pth")


def root(data: bytes) -> Any:
    return unpickled(data).root


def short_text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def array_in(value: object) -> Any:
    assert type(value) is NumpyArray
    return value.value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back_as_they_were(protocol: int) -> None:
    value = {
        "a": [1, -2, 3.5, None, True, False],
        "b": ("x", b"bytes", b"", bytearray(b"more")),
        "big": 2**70,
        "한": OrderedDict([("z", 1), ("y", 2)]),
    }
    expected = {**value, "b": ("x", b"bytes", b"", b"more")}
    assert root(pickle.dumps(value, protocol)) == expected
    assert list(root(pickle.dumps(value, protocol))["한"]) == ["z", "y"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_call_of_a_shell_command_stays_a_name(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    loaded = root(pickle.dumps({"x": Runs(os.system, f"touch {marker}")}, protocol))
    assert type(loaded["x"]) is Placeholder
    assert loaded["x"].name == "posix.system"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.__init__"),
        ("collections.OrderedDict", "fromkeys"),
        ("", ""),
    ],
)
def test_names_off_the_list_and_dotted_names_are_inert(module: str, name: str) -> None:
    code = PROTO_4 + short_text(module) + short_text(name) + b"\x93" + short_text("1+1") + b"\x85R."
    loaded = root(code)
    assert type(loaded) is Placeholder
    assert loaded.name == f"{module}.{name}"


def test_no_module_that_a_pickle_names_is_imported() -> None:
    assert "this" not in sys.modules
    loaded = root(PROTO_2 + b"cthis\ns\n.")
    assert type(loaded) is GlobalName
    assert "this" not in sys.modules


def test_what_a_call_gives_back_cannot_be_called() -> None:
    chained = PROTO_2 + b"cbuiltins\ngetattr\n)R)R."
    with pytest.raises(CheckpointError, match="call of something that is not a name"):
        root(chained)


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_lists_and_tables_of_unknown_classes_are_dropped(protocol: int) -> None:
    value = [Stateful(), Listing([1, 2, 3]), Table(a=1), {1, 2}, frozenset([3]), 1j, range(3)]
    loaded = root(pickle.dumps([*value, slice(1, 2)], protocol))
    assert [type(item) for item in loaded] == [Placeholder] * 8
    assert [item.name.rpartition(".")[2] for item in loaded[:3]] == ["Stateful", "Listing", "Table"]


def test_a_state_never_reaches_an_attribute() -> None:
    # OrderedDict(), then BUILD with a state that the base class would write into attributes.
    state = b"}(X\x05\x00\x00\x00itemsX\x01\x00\x00\x00xu"
    loaded = root(PROTO_2 + b"ccollections\nOrderedDict\n)R" + state + b"b.")
    assert loaded == {}
    assert vars(type(loaded))["items"] is dict.__dict__["items"]


def test_a_tensor_is_a_description_with_its_storage_key() -> None:
    buffer = io.BytesIO()
    source = torch.arange(12, dtype=torch.float16).reshape(3, 4).t()[1:]
    torch.save(source, buffer)
    data = _record(buffer.getvalue(), "data.pkl")
    result = unpickled(data)
    tensor = result.root
    assert type(tensor) is LazyTensor
    assert (tensor.size, tensor.stride, tensor.offset) == ((3, 3), (1, 4), 1)
    assert (tensor.dtype, tensor.storage.numel, tensor.nbytes) == (torch.float16, 12, 18)
    assert set(result.storages) == {"0"}


def test_a_tensor_that_is_stored_conjugated_is_not_taken_for_its_bytes() -> None:
    buffer = io.BytesIO()
    torch.save(torch.tensor([1 + 2j]).conj(), buffer)
    loaded = root(_record(buffer.getvalue(), "data.pkl"))
    assert type(loaded) is Placeholder
    assert "conjugate" in loaded.name


def test_a_parameter_is_its_tensor() -> None:
    buffer = io.BytesIO()
    torch.save(torch.nn.Parameter(torch.zeros(2)), buffer)
    assert type(root(_record(buffer.getvalue(), "data.pkl"))) is LazyTensor


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("code", ["f4", ">f8", "<i2", "u1", "?", "c8", ">i8", "f2"])
def test_numeric_numpy_arrays_are_equal_to_the_original(code: str, protocol: int) -> None:
    source = np.array([[0, 1, 2], [3, 4, 5]]).astype(code)
    fortran = np.asfortranarray(source)
    loaded = root(pickle.dumps([source, fortran, source[:0], np.array(7).astype(code)], protocol))
    arrays = [array_in(item) for item in loaded]
    np.testing.assert_array_equal(arrays[0], source)
    np.testing.assert_array_equal(arrays[1], source)
    assert arrays[0].dtype == source.dtype
    assert arrays[2].shape == (0, 3)
    assert arrays[3] == 7 or arrays[3] == np.array(7).astype(code)


@pytest.mark.parametrize(
    "scalar", [np.float64(0.25), np.int64(-3), np.float32(1.5), np.bool_(True)]
)
def test_numpy_scalars_are_numbers(scalar: Any) -> None:
    assert root(pickle.dumps({"s": scalar}, 2)) == {"s": scalar.item()}


def test_names_of_numpy_1_are_known_as_well() -> None:
    data = pickle.dumps([np.float64(0.5), np.arange(3)], 2)
    older = data.replace(b"numpy._core.", b"numpy.core.")
    assert older != data
    loaded = root(older)
    assert loaded[0] == 0.5
    assert array_in(loaded[1]).tolist() == [0, 1, 2]


def test_arrays_of_text_are_lists_and_arrays_of_objects_have_no_value() -> None:
    loaded = root(
        pickle.dumps([np.array(["벼", "crop"]), np.array([Stateful(), 1], dtype=object)], 2)
    )
    assert array_in(loaded[0]) == ["벼", "crop"]
    assert array_in(loaded[1]) is None


def test_an_array_whose_shape_does_not_fit_its_bytes_is_refused() -> None:
    data = pickle.dumps(np.zeros(3, dtype=np.int8), 2)
    with pytest.raises(CheckpointError, match="shape does not fit its bytes"):
        root(data.replace(b"K\x03\x85", b"K\x04\x85"))


def test_a_pickle_of_python_2_is_read() -> None:
    # {'classes': ['cr\xc3\xa9p', 5000000000], 'raw': array} with byte strings, as Python 2 wrote.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x02\x85cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\xa0\xc0tb"
    )
    data = PROTO_2 + b"}(U\x07classes](U\x05cr\xc3\xa9pI5000000000\neU\x03raw" + array + b"u."
    loaded = root(data)
    assert loaded["classes"] == ["crép", 5_000_000_000]
    assert array_in(loaded["raw"]).tolist() == [1.0, -5.0]


def test_an_index_of_four_billion_in_the_memo_costs_nothing() -> None:
    tracemalloc.start()
    assert root(PROTO_2 + b"]r\xff\xff\xff\xff.") == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "opcode", [b"\x8e", b"\x8d", b"\x96", b"\x95"], ids=["bytes", "text", "bytearray", "frame"]
)
def test_a_length_beyond_the_file_allocates_nothing(opcode: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="cannot be read"):
        root(PROTO_4 + opcode + struct.pack("<Q", 2**40) + b"abc.")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_no_more_is_asked_of_the_file_than_it_has() -> None:
    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert 0 <= size <= 100
            return super().read(size)

    data = PROTO_4 + b"\x8e" + struct.pack("<Q", 2**40) + b"abc."
    with pytest.raises(CheckpointError, match="ends too early"):
        object_from_pickle(BoundedReader(Watched(data), len(data)), file="a.pth")


def test_a_deeply_nested_tuple_as_a_key_does_not_overflow_the_stack() -> None:
    nested = b")" + b"\x85" * 200_000
    loaded = root(PROTO_2 + b"}" + nested + b"K\x01s.")
    ((key, value),) = loaded.items()
    assert type(key) is Placeholder
    assert value == 1


def test_numbers_of_equal_hash_are_no_keys() -> None:
    loaded = root(pickle.dumps({2**61 - 1: "a", 5: "b"}, 2))
    assert [type(key) for key in loaded] == [Placeholder, int]


def test_a_list_nested_in_itself_a_hundred_thousand_times_is_read() -> None:
    value = root(PROTO_2 + b"]" * 100_000 + b"a" * 99_999 + b".")
    assert len(value) == 1


def test_a_pickle_with_too_many_steps_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickler._Opcodes, "left", 1000)
    with pytest.raises(CheckpointError, match="ten million steps"):
        root(PROTO_2 + b"N0" * 1000 + b"N.")


def test_copies_of_one_long_list_count_as_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickler._Opcodes, "left", 3000)
    pairs = b"](" + b"K\x01K\x02\x86" * 200 + b"e\x85q\x00"
    copies = (b"ccollections\nOrderedDict\nh\x00R" + b"0") * 20
    with pytest.raises(CheckpointError, match="ten million steps"):
        root(PROTO_2 + pairs + copies + b".")


@pytest.mark.parametrize(
    "code", [b"\x82\x01", b"\x97", b"P1\n", b"ios\nsystem\n", b"\xff", b"Vx\n"]
)
def test_opcodes_that_no_checkpoint_needs_are_refused(code: bytes) -> None:
    with pytest.raises(CheckpointError, match="no use for"):
        root(PROTO_2 + b"(" + code + b".")


@pytest.mark.parametrize(
    "code",
    [b".", b"0.", b"t.", b"NNa.", b"NNNs.", b"}(K\x01u.", b"Nh\x05.", b"\x80\xff.", b"Q.", b"NQ."],
)
def test_malformed_pickles_are_refused_on_one_line(code: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth, whose pickle cannot be read") as caught:
        root(PROTO_2 + code)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "size", [(-1,), (1.5,), (True,), (2**64,), 5, (1,) * 65, None, ("1",), ((1,),)]
)
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(CheckpointError, match="a size"):
        root(pickle.dumps(Runs(torch.Size, size), 2))


def test_every_cut_of_a_pickle_is_refused() -> None:
    data = pickle.dumps({"a": [1, 2.5, "text"], "b": np.arange(4)}, 2)
    for length in range(len(data)):
        with pytest.raises(CheckpointError, match="cannot be read"):
            root(data[:length])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_an_object_or_a_checkpoint_error(data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        root(PROTO_4 + data)


def _record(archive: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        (found,) = [entry for entry in file.namelist() if entry.endswith("/" + name)]
        return file.read(found)
