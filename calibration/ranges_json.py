"""ranges.json: the ranges of one calibration, to be read again or by other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast, get_args

from calibration.ranges import CANDIDATES, Method, Ranges, TensorRange
from engines.errors import BundleError

FORMAT = "riceseg-ranges"
FORMAT_VERSION = 1


def ranges_to_json(ranges: Ranges) -> str:
    record: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    record.update(method=ranges.method, images=ranges.images, percentile=ranges.percentile)
    record["tensors"] = _record_from_tensors(ranges.tensors)
    record["implicit"] = _record_from_tensors(ranges.implicit)
    record["chosen"] = dict(ranges.chosen)
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def _record_from_tensors(tensors: Mapping[str, TensorRange]) -> dict[str, dict[str, float]]:
    records = {}
    for name, item in tensors.items():
        records[name] = {"min": item.min, "max": item.max, "amax": item.amax}
        if item.outlier_percent is not None:
            records[name]["outlier_percent"] = item.outlier_percent
    return records


def ranges_from_json(text: str) -> Ranges:
    """Read what `ranges_to_json` wrote; the text is not trusted. BundleError says what is wrong.

    The first files of version 1 have no "implicit", "chosen" and "outlier_percent".
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
    if method not in (*get_args(Method), "file"):
        raise _bad_ranges(f"the method {method!r}")
    fewest = 0 if method == "file" else 1
    if not isinstance(images, int) or isinstance(images, bool) or images < fewest:
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
        _checked_choice(record.get("chosen", {}), set(tensors) if method == "auto" else set()),
    )


def _checked_choice(chosen: object, tensors: set[str]) -> dict[str, Method]:
    """One method for each of `tensors`."""
    if not isinstance(chosen, dict) or set(chosen) != tensors:
        raise _bad_ranges(f"chosen {str(chosen)[:40]}, which is not one method for each tensor")
    for name, method in chosen.items():
        if method not in CANDIDATES:
            raise _bad_ranges(f"chosen.{name} = {str(method)[:40]}")
    return cast("dict[str, Method]", chosen)


def _tensor_range_from_record(name: str, item: object) -> TensorRange:
    if not isinstance(item, dict) or set(item) - {"outlier_percent"} != {"min", "max", "amax"}:
        raise _bad_ranges(f"tensor {name} without exactly min, max and amax")
    low, high, amax = (_finite(item[key], f"{name}.{key}") for key in ("min", "max", "amax"))
    if low > high or amax <= 0:
        raise _bad_ranges(f"tensor {name} with min {low}, max {high}, amax {amax}")
    outliers = item.get("outlier_percent")
    if outliers is not None:
        outliers = _finite(outliers, f"{name}.outlier_percent")
        if not 0.0 <= outliers <= 100.0:
            raise _bad_ranges(f"{name}.outlier_percent = {outliers}")
    return TensorRange(low, high, amax, outliers)


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
