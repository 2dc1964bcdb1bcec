"""Which image files are looked at where a few are enough."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from calibration.output_error import error_of
from engines.bundle import InputSpec
from engines.errors import DatasetError, ImageError
from exporter.calibrate import shown_images
from exporter.network_images import first_readable
from exporter.request import DataOptions
from exporter.work import Work

SPEC = InputSpec(
    name="image",
    hw=(2, 2),
    channels=3,
    channel_order="RGB",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    resize="stretch",
    batch=(1, 1, 1),
)
SKIP = DataOptions(skip_bad=True)


def write_files(folder: Path, values: list[int | None]) -> list[Path]:
    """Pictures of one value each; None is a file that is no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, value in enumerate(values):
        paths.append(folder / f"사진{index}.png")
        if value is None:
            paths[-1].write_bytes(b"no picture")
        else:
            Image.fromarray(np.full((2, 2, 3), value, np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], [0, 2, 4]),
        ([0, 1, None, 3, 4, 5], [0, 4, 1]),
        ([None, 1, None, None, None, 5], [1, 5]),
        ([7], [7]),
        ([None, None], []),
        ([], []),
    ],
)
def test_others_stand_in_for_what_cannot_be_read(
    values: list[int | None], expected: list[int], tmp_path: Path
) -> None:
    images = first_readable(write_files(tmp_path, values), 3, SPEC, SKIP)
    assert [int(image[0, 0, 0]) for image in images] == expected


def test_what_cannot_be_read_is_an_error_unless_it_may_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"사진0\.png"):
        first_readable(write_files(tmp_path, [None, 1]), 1, SPEC, DataOptions())


@pytest.mark.parametrize(("validation", "expected"), [([None, 3], [3]), ([None], [8]), ([], [8])])
def test_answers_are_compared_on_validation_images_if_one_can_be_read(
    validation: list[int | None], expected: list[int], tmp_path: Path
) -> None:
    pairs = [SimpleNamespace(image=path) for path in write_files(tmp_path / "val", validation)]
    calib = [SimpleNamespace(path=path) for path in write_files(tmp_path / "calib", [8])]
    work = cast(Work, SimpleNamespace(pairs=pairs, calib=calib, input=SPEC))
    assert [int(image[0, 0, 0]) for image in shown_images(work, SKIP)] == expected


def test_no_answers_cannot_be_compared() -> None:
    with pytest.raises(DatasetError, match="no image to compare answers on"):
        error_of([], [])
