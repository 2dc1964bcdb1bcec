from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from calibration.images import CalibrationImage, calibration_list
from engines.errors import DatasetError


def _files(folder: Path, **contents: bytes) -> list[Path]:
    paths = []
    for name, content in contents.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(content)
    return paths


def test_the_list_keeps_the_order_and_bears_the_hash_of_each_file(tmp_path: Path) -> None:
    b, a = _files(tmp_path, b=b"second", a=b"first")
    assert calibration_list([b, a]) == (
        CalibrationImage(b, hashlib.sha256(b"second").hexdigest()),
        CalibrationImage(a, hashlib.sha256(b"first").hexdigest()),
    )


def test_an_image_of_the_validation_set_is_refused_by_content_under_any_name(
    tmp_path: Path,
) -> None:
    own, copy, validation = _files(tmp_path, own=b"1", copy=b"2", validation=b"2")
    with pytest.raises(DatasetError, match=r"got 1 calibration images that are .*: copy\.png;"):
        calibration_list([own, copy], validation_files=[validation])


def test_only_three_shared_images_are_named(tmp_path: Path) -> None:
    files = _files(tmp_path, a=b"1", b=b"2", c=b"3", d=b"4")
    with pytest.raises(DatasetError, match=r"got 4 .*: a\.png, b\.png, c\.png, \.\.\.;"):
        calibration_list(files, validation_files=files)


def test_separate_sets_pass(tmp_path: Path) -> None:
    a, b = _files(tmp_path, a=b"1", b=b"2")
    assert len(calibration_list([a], validation_files=[b])) == 1


def test_no_images_is_an_error() -> None:
    with pytest.raises(DatasetError, match="never calibrates on noise"):
        calibration_list([])
