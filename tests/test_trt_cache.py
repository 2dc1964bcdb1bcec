from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from calibration.ranges import Ranges, TensorRange
from calibration.trt_cache import calibration_cache_from_ranges, write_calibration_cache
from engines.errors import ConfigError, GraphError, OutputError


def _ranges(**amax: float) -> Ranges:
    tensors = {name: TensorRange(-value, value, value) for name, value in amax.items()}
    return Ranges("minmax", 1, tensors)


def test_a_cache_holds_the_scales_as_big_endian_float32() -> None:
    # 127 -> 1.0 = 0x3f800000; 1 -> 1/127 = 0x3c010204; 190.5 -> 1.5 = 0x3fc00000
    ranges = _ranges(mixed=127.0, normed=1.0)
    written = _ranges(**{"/a/Add: x": 190.5}).tensors
    assert calibration_cache_from_ranges(dataclasses.replace(ranges, implicit=written)) == (
        "TRT-8601-EntropyCalibration2\nmixed: 3f800000\nnormed: 3c010204\n/a/Add: x: 3fc00000\n"
    )


def test_the_first_line_bears_the_version() -> None:
    text = calibration_cache_from_ranges(_ranges(x=1.0), tensorrt_version="100300")
    assert text.startswith("TRT-100300-EntropyCalibration2\n")


@pytest.mark.parametrize("version", ["8.6.1", "", "8601\n", "86"])
def test_a_version_that_is_not_digits_is_an_error(version: str) -> None:
    with pytest.raises(ConfigError, match="TensorRT version"):
        calibration_cache_from_ranges(_ranges(x=1.0), tensorrt_version=version)


@pytest.mark.parametrize("name", ["", "a\nb", "a\tb"])
def test_a_name_that_would_break_the_lines_is_an_error(name: str) -> None:
    with pytest.raises(GraphError, match="tensor name"):
        calibration_cache_from_ranges(_ranges(**{name: 1.0}))


def test_a_cache_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "calibration.cache"
    write_calibration_cache(_ranges(x=1.0), path)
    assert path.read_text(encoding="utf-8") == calibration_cache_from_ranges(_ranges(x=1.0))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not writable"):
        write_calibration_cache(_ranges(x=1.0), tmp_path / "no" / "calibration.cache")
