"""Zips of the raw data set: read without unpacking, and nothing in them is believed."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from five_band_scenes import Cp949Member, scene_name
from raw_files import BAND, SCENE, only_left_out, with_a_good_scene, zip_of

from engines.errors import DatasetError
from exporter.prepare import archive
from exporter.prepare.raw_layout import sources_from


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 999])
def test_a_member_is_read_as_zipfile_reads_it(tmp_path: Path, packing: int, data: bytes) -> None:
    path = zip_of(tmp_path / "a.zip", ("a.txt", b"before"), (BAND, data), compression=packing)
    file = sources_from(path).scenes[0].bands["G"]
    assert file.read() == data
    assert file.stamp() == (len(data), zlib.crc32(data))


def test_a_zip_behind_other_data_is_read(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", (BAND, b"band"))
    path.write_bytes(b"an installer" + path.read_bytes())
    assert sources_from(path).scenes[0].bands["G"].read() == b"band"


def test_names_of_members_are_decoded_as_they_were_meant(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    names = [f"원천데이터/논 {letter}/{scene_name(1, letter)}.tif" for letter in "RGN"]
    plain = zipfile.ZipInfo("placeholder")

    class Unmarked(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            return self.filename.encode("utf-8"), 0  # as macOS stores it

    plain.filename = names[0]
    zip_of(path, (plain, b"R"), (Cp949Member(names[1]), b"G"), (Unmarked(names[2]), b"N"))
    (scene,) = sources_from(path).scenes
    for letter, name in zip("RGN", names, strict=True):
        assert str(scene.bands[letter]) == f"{path}: {name}"
        assert scene.bands[letter].read() == letter.encode()


@pytest.mark.parametrize(
    "name",
    [f"../{BAND}", f"a/../../{BAND}", f"/etc/{BAND}", f"C:\\x\\{BAND}", f"..\\{BAND}", f"C:{BAND}"],
)
def test_a_member_whose_name_leads_out_of_the_zip_is_told(tmp_path: Path, name: str) -> None:
    zip_of(with_a_good_scene(tmp_path) / "a.zip", (name, b"x"))
    told = only_left_out(sources_from(tmp_path))
    assert "leads out" in told.reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R20220101A01R0001.tif", "a.zip"]


def test_a_name_with_dots_or_windows_separators_inside_the_zip_is_none_of_these(
    tmp_path: Path,
) -> None:
    path = zip_of(tmp_path / "a.zip", (f"v1..2\\R..\\{BAND}", b"x"))
    assert sources_from(path).scenes[0].bands["G"].read() == b"x"


def patched(path: Path, mark: bytes, at: int, value: bytes) -> None:
    """Writes into each record of a zip that begins with `mark`."""
    data = bytearray(path.read_bytes())
    start = data.find(mark)
    while start >= 0:
        data[start + at : start + at + len(value)] = value
        start = data.find(mark, start + 4)
    path.write_bytes(data)


def test_an_encrypted_member_is_told(tmp_path: Path) -> None:
    path = zip_of(with_a_good_scene(tmp_path) / "a.zip", (BAND, b"x"))
    patched(path, b"PK\x01\x02", 8, b"\x01\x00")
    assert "encrypted" in only_left_out(sources_from(tmp_path)).reason


def test_a_member_packed_in_another_way_is_told(tmp_path: Path) -> None:
    path = zip_of(
        with_a_good_scene(tmp_path) / "a.zip", (BAND, b"x"), compression=zipfile.ZIP_BZIP2
    )
    assert "unpack the zip" in only_left_out(sources_from(path.parent)).reason


def test_a_member_of_an_unheard_of_size_is_told(tmp_path: Path) -> None:
    path = zip_of(with_a_good_scene(tmp_path) / "a.zip", (BAND, b"x"))
    patched(path, b"PK\x01\x02", 24, (0xFFFFFF00).to_bytes(4, "little"))
    assert "more than 256 MiB" in only_left_out(sources_from(tmp_path)).reason


def test_a_bomb_is_unpacked_no_further_than_its_stated_size(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", (BAND, bytes(64 << 20)), compression=zipfile.ZIP_DEFLATED)
    patched(path, b"PK\x01\x02", 24, (1000).to_bytes(4, "little"))
    file = sources_from(path).scenes[0].bands["G"]
    with pytest.raises(DatasetError, match="cut short or damaged"):
        file.read()
    assert file.member is not None
    packed = path.read_bytes()[file.member.offset + 30 + len(BAND) :][: file.member.packed_bytes]
    assert len(file._inflated(packed, 1000)) == 1001


def test_a_zip_inside_a_zip_is_told(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as written:
        written.writestr(BAND, b"x")
    zip_of(with_a_good_scene(tmp_path) / "a.zip", ("inner.zip", inner.getvalue()))
    assert "a zip inside a zip" in only_left_out(sources_from(tmp_path)).reason


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_name_that_a_zip_holds_twice_the_first_is_taken(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", (BAND, b"first"), (BAND, b"second"))
    source = sources_from(path)
    assert source.scenes[0].bands["G"].read() == b"first"
    assert "found before" in source.left_out[0].reason


def test_a_zip_cut_short_anywhere_is_told(tmp_path: Path) -> None:
    good = with_a_good_scene(tmp_path)
    whole = zip_of(tmp_path / "a.zip", (BAND, b"x" * 50)).read_bytes()
    for length in range(0, len(whole), 7):
        (good / "a.zip").write_bytes(whole[:length])
        told = only_left_out(sources_from(tmp_path))
        assert told.where == str(good / "a.zip")
        assert "cannot be listed" in told.reason


def test_a_member_that_is_not_what_the_directory_says_is_a_user_s_error(tmp_path: Path) -> None:
    whole = zip_of(tmp_path / "a.zip", (BAND, b"x" * 50), compression=zipfile.ZIP_DEFLATED)
    data = whole.read_bytes()
    file = sources_from(whole).scenes[0].bands["G"]
    end = data.index(b"PK\x01\x02")
    positions = [*range(26, 30), *range(30 + len(BAND), end)]  # not the name, which is not read
    refused = 0
    for position in positions:
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        whole.write_bytes(damaged)
        try:
            assert file.read() == b"x" * 50
        except DatasetError:
            refused += 1
    assert refused >= len(positions) - 1  # the bits after the last packed one mean nothing
    for length in (0, 10, 29, 31, end - 1):
        whole.write_bytes(data[:length])
        with pytest.raises(DatasetError, match="which cannot be read"):
            file.read()


@pytest.mark.parametrize("offset", [30_000, 1 << 62, 1 << 63, (1 << 64) - 1])
def test_a_member_behind_the_end_of_its_zip_is_a_user_s_error(tmp_path: Path, offset: int) -> None:
    path = zip_of(tmp_path / "a.zip", (BAND, b"x" * 50))
    (file, _), *_ = archive.files_in_zip(str(path))
    assert file.member is not None
    moved = replace(file, member=replace(file.member, offset=offset))
    with pytest.raises(DatasetError, match="does not hold it where it says"):
        moved.read()


def test_a_zip_with_a_directory_of_unheard_of_size_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [(f"a/{number}.txt", b"") for number in range(2000)]
    path = zip_of(with_a_good_scene(tmp_path) / "a.zip", *files)
    assert len(list(archive.files_in_zip(str(path)))) == 2000
    monkeypatch.setattr(archive, "MAX_DIRECTORY_BYTES", 70_000)
    assert "a directory of more than" in only_left_out(sources_from(tmp_path)).reason


@pytest.mark.parametrize("seed", range(4))
def test_a_zip_with_damaged_bytes_never_raises_anything_else(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    whole = zip_of(
        tmp_path / "a.zip", (Cp949Member(f"논/{BAND}"), b"x" * 30), (f"{SCENE}.json", b"{}")
    )
    data = np.frombuffer(whole.read_bytes(), np.uint8)
    for _ in range(150):
        damaged = data.copy()
        places = random.integers(0, len(data), 3)
        damaged[places] = random.integers(0, 256, 3)
        whole.write_bytes(damaged.tobytes())
        try:
            for scene in sources_from(whole).scenes:
                for file in scene.bands.values():
                    assert file.read() == b"x" * 30
        except DatasetError:
            continue
