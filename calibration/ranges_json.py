"""ranges.json: the ranges of one calibration, to be read again or by other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast, get_args

from calibration.ranges import Method, Ranges, TensorRange
from engines.errors import BundleError

FORMAT = "riceseg-ranges"
FORMAT_VERSION = 1


def ranges_to_json(ranges: Ranges) -> str:
    record: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    record.update(method=ranges.method, images=ranges.images, percentile=ranges.percentile)
    record["tensors"] = _record_from_tensors(ranges.tensors)
    record["implicit"] = _record_from_tensors(ranges.implicit)
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def _record_from_tensors(tensors: Mapping[str, TensorRange]) -> dict[str, dict[str, float]]:
    return {name: {"min": r.min, "max": r.max, "amax": r.amax} for name, r in tensors.items()}


def ranges_from_json(text: str) -> Ranges:
    """Read what `ranges_to_json` wrote; the text is not trusted. BundleError says what is wrong.

    The first files of version 1 have no "implicit".
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad_ranges(f"text that is not JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _bad_ranges("a file of another format")
    if record.get("format_version") != FORMAT_VERSION:
        raise _bad_ranges(f"format_version {record.get('format_version')!r}")
    method, images, tensors = (record.get(key) for key in ("method", "images", "tensors"))
    if method not in get_args(Method):
        raise _bad_ranges(f"the method {method!r}")
    if not isinstance(images, int) or isinstance(images, bool) or images < 1:
        raise _bad_ranges(f"images {images!r}")
    if not isinstance(tensors, dict) or not tensors:
        raise _bad_ranges("no tensors")
    implicit = record.get("implicit", {})
    if not isinstance(implicit, dict):
        raise _bad_ranges(f"implicit {str(implicit)[:40]}")
    percentile = record.get("percentile")
    if percentile is not None:
        percentile = _finite(percentile, "percentile")
    return Ranges(
        cast(Method, method),
        images,
        {name: _tensor_range_from_record(name, item) for name, item in tensors.items()},
        percentile,
        {name: _tensor_range_from_record(name, item) for name, item in implicit.items()},
    )


def _tensor_range_from_record(name: str, item: object) -> TensorRange:
    if not isinstance(item, dict) or set(item) != {"min", "max", "amax"}:
        raise _bad_ranges(f"tensor {name} without exactly min, max and amax")
    low, high, amax = (_finite(item[key], f"{name}.{key}") for key in ("min", "max", "amax"))
    if low > high or amax <= 0:
        raise _bad_ranges(f"tensor {name} with min {low}, max {high}, amax {amax}")
    return TensorRange(low, high, amax)


def _finite(value: object, name: str) -> float:
    """A number that float32 can hold."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 3.4e38:
        return float(value)
    raise _bad_ranges(f"{name} = {str(value)[:40]}")


def _bad_ranges(got: str) -> BundleError:
    return BundleError(
        f"{got} in the ranges file",
        expected=f"{FORMAT} version {FORMAT_VERSION}, with finite ranges and positive clips",
        do="calibrate again",
    )
