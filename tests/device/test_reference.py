from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engines.errors import BundleError
from engines.evaluation.reference import ReferenceLabels

NAMES = ["a" * 64, "0123456789abcdef" * 4]
HW = (3, 5)


def labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 6, HW, dtype=np.uint8)


def stored(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "참조.npz"
    np.savez_compressed(path, **arrays)
    return path


def npy_bytes(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def zipped(folder: Path, entries: list, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of (name, bytes), whatever they are."""
    path = folder / "reference.npz"
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        ReferenceLabels(path, hw=HW)(NAMES[0])


def test_labels_come_back_by_the_hash_of_their_image(tmp_path: Path) -> None:
    arrays = {name: labels(seed) for seed, name in enumerate(NAMES)}
    with ReferenceLabels(stored(tmp_path, **arrays), hw=HW) as references:
        assert references.count == 2
        for name, expected in arrays.items():
            found = references(name)
            assert found is not None
            assert found.dtype == np.uint8
            assert found.tolist() == expected.tolist()
            assert found.flags.writeable


def test_an_image_without_labels_has_none(tmp_path: Path) -> None:
    with ReferenceLabels(stored(tmp_path, **{NAMES[0]: labels()}), hw=HW) as references:
        assert references(NAMES[1]) is None
        assert references("../" + NAMES[0]) is None


def test_an_uncompressed_file_is_read_as_well(tmp_path: Path) -> None:
    path = zipped(tmp_path, [(f"{NAMES[0]}.npy", npy_bytes(labels()))], zipfile.ZIP_STORED)
    with ReferenceLabels(path, hw=HW) as references:
        found = references(NAMES[0])
    assert found is not None
    assert found.tolist() == labels().tolist()


@pytest.mark.parametrize(
    "name",
    ["labels.npy", f"../{'a' * 64}.npy", "A" * 64 + ".npy", "a" * 64, f"{'a' * 64}.npy/", "한.npy"],
)
def test_an_entry_that_is_not_named_by_a_hash_is_refused(tmp_path: Path, name: str) -> None:
    refused(zipped(tmp_path, [(name, npy_bytes(labels()))]), "with the entry ")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_entry_twice_is_refused(tmp_path: Path) -> None:
    entry = (f"{NAMES[0]}.npy", npy_bytes(labels()))
    refused(zipped(tmp_path, [entry, entry]), "with the entry 'aaa")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((5, 3), np.uint8), r"is described as .*\(5,3\)"),
        (np.zeros((1, 15), np.uint8), r"is described as .*\(1,15\)"),
        (np.zeros(15, np.uint8), r"is described as .*\(15,\)"),
        (np.zeros(HW, np.int8), r"is described as .*i1"),
        (np.asfortranarray(np.zeros(HW, np.uint8)), "is described as .*True"),
        (np.zeros(HW, np.int64), "is described as .*i8"),  # 248 bytes may be a header and labels
        (np.zeros((100, 100), np.uint8), "has 10128 bytes"),
    ],
)
def test_labels_of_another_size_or_type_are_refused(
    tmp_path: Path, array: np.ndarray, match: str
) -> None:
    refused(stored(tmp_path, **{NAMES[0]: array}), match)


def test_objects_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "done"),)

    array = np.empty(HW, object)
    array[:] = Attack()
    data = npy_bytes(array, allow_pickle=True)
    refused(zipped(tmp_path, [(f"{NAMES[0]}.npy", data)]), "is described as .*'|O'")
    assert not (tmp_path / "done").exists()


def test_a_size_in_the_directory_that_is_too_large_is_refused_before_unpacking(
    tmp_path: Path,
) -> None:
    # 100 MB of zeros, 100 kB packed.
    path = zipped(tmp_path, [(f"{NAMES[0]}.npy", bytes(100_000_000))])
    assert path.stat().st_size < 200_000
    with pytest.raises(BundleError, match="has 100000000 bytes"):
        ReferenceLabels(path, hw=HW)


def test_a_directory_that_lies_about_the_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = zipped(tmp_path, [(f"{NAMES[0]}.npy", bytes(10_000_000))])
    true, told = struct.pack("<L", 10_000_000), struct.pack("<L", 143)
    path.write_bytes(path.read_bytes().replace(true, told))
    refused(path, "is damaged|is described as")


def test_a_damaged_entry_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = zipped(tmp_path, [(f"{NAMES[0]}.npy", npy_bytes(labels()))], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x93NUMPY") + 140] ^= 1
    path.write_bytes(bytes(data))
    refused(path, "whose entry a{64}.npy is damaged")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no zip", bytes(1000)])
def test_a_file_that_is_no_zip_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "reference.npz"
    path.write_bytes(data)
    refused(path, "that cannot be read")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, **{name: labels() for name in NAMES})
    path.write_bytes(path.read_bytes()[:-30])
    refused(path, "that cannot be read")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.npz", "that cannot be read")


def test_a_zip_of_nothing_is_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path, []), "with 0 entries")


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_numpy_does_not_use_is_refused(tmp_path: Path, kind: int) -> None:
    refused(zipped(tmp_path, [(f"{NAMES[0]}.npy", npy_bytes(labels()))], kind), "oddly packed")


@pytest.mark.parametrize("header", [b"", b"{", b"{'shape': (" + b"9" * 200 + b", 5)}"])
def test_a_header_of_another_kind_is_refused(tmp_path: Path, header: bytes) -> None:
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(15)
    refused(zipped(tmp_path, [(f"{NAMES[0]}.npy", data)]), "is described as")


@pytest.mark.parametrize("length", [16, 17, 20])
def test_an_entry_too_short_for_a_header_is_refused(tmp_path: Path, length: int) -> None:
    refused(zipped(tmp_path, [(f"{NAMES[0]}.npy", b"\x93NUMPY\x01\x00" + bytes(length - 8))]), "is")
