"""The label JSON of a scene becomes polygons with class codes; nothing in it is believed.

Fields, as the data set's own tools read them: `IMAGES.PHOTO_FILE_MG` is the shape [height, width],
each of `ANNOTATIONS` has an `OBJECT_CLASS_CODE` and the corners in `PYN_XCRDNT` and `PYN_YCRDNT`.
Others are not read.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from engines.decoding import MAX_PIXELS
from engines.errors import DatasetError
from engines.progress import printable

CLASS_OF_CODE: Mapping[str, int] = {"01": 1, "02": 2, "03": 3, "04": 4, "05": 5}

MAX_JSON_BYTES = 8 << 20  # Python needs up to 25 times as much for it; a real one has some KiB.
# cv2.fillPoly takes longer with the square of a polygon's corners in the worst case: a star of
# 1,000 random ones 4 ms, of 10,000 2 s (OpenCV 5.0, one core).
MAX_CORNERS = 10_000
MAX_CORNERS_IN_ALL = 50_000
MAX_POLYGONS = 10_000
# And it goes through every row of a polygon, inside the image or not: 7 s for those of 32 bits.
MAX_COORDINATE = 100_000

_LONG_NUMBER = re.compile(r"\d{20}")
_FIELDS = ("OBJECT_CLASS_CODE", "PYN_XCRDNT", "PYN_YCRDNT")


@dataclass(frozen=True, eq=False)
class Polygon:
    """`points` (n, 2) float64 in pixels, x before y, n >= 3, all finite; `code` is a known one."""

    code: str
    points: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SceneLabels:
    """`polygons` in the file's order; `warnings` say what was left out, one line for each kind."""

    hw: tuple[int, int]
    polygons: tuple[Polygon, ...]
    warnings: tuple[str, ...]


def scene_labels_from_json(data: bytes, where: str) -> SceneLabels:
    """The labels in the bytes of a file called `where`, in UTF-8, UTF-16 with BOM or CP949.

    What cannot alter a mask is left out with a warning: polygons of an unknown class code, which
    the data set's recipe paints as background before all others, of fewer than 3 corners, and
    outside the image. Raises DatasetError for anything else that is not as it should be, since a
    mask with a polygon missing would be wrong.
    """
    record = _parsed(data, where)
    if not isinstance(record, dict):
        raise _wrong(where, f"a {_kind(record)} at the top", "an object with IMAGES, ANNOTATIONS")
    hw = _hw(record.get("IMAGES"), where)
    found = record.get("ANNOTATIONS")
    if not isinstance(found, list):
        raise _wrong(where, f"ANNOTATIONS, which is {_kind(found)}", "a list of polygons")
    if len(found) > MAX_POLYGONS:
        raise _wrong(where, f"{len(found)} polygons", f"at most {MAX_POLYGONS}")
    polygons: list[Polygon] = []
    odd: dict[str, list[int]] = {}
    corners = 0
    for number, item in enumerate(found, start=1):
        polygon, problem = _polygon(item, hw, f"{where}, polygon {number}")
        if problem:
            odd.setdefault(problem, []).append(number)
        if polygon is not None:
            polygons.append(polygon)
            corners += len(polygon.points)
            if corners > MAX_CORNERS_IN_ALL:
                raise _wrong(where, "polygons of too many corners", f"{MAX_CORNERS_IN_ALL} in all")
    warnings = tuple(_warning(problem, numbers) for problem, numbers in odd.items())
    return SceneLabels(hw, tuple(polygons), warnings)


def _parsed(data: bytes, where: str) -> Any:
    if len(data) > MAX_JSON_BYTES:
        raise _wrong(where, f"{len(data)} bytes", f"at most {MAX_JSON_BYTES}")
    text = _text(data, where)

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    # Python's own is faster, but before 3.10.7 takes the square of the digits' number.
    parse_int = _int if _LONG_NUMBER.search(text) else None
    try:
        return json.loads(text, parse_constant=refuse, parse_int=parse_int)
    except RecursionError:
        raise _wrong(where, "lists inside lists without end", "the data set's JSON") from None
    except ValueError as error:  # JSONDecodeError is one.
        raise _wrong(where, f"no JSON ({error})", "a whole JSON file") from error


def _int(digits: str) -> int:
    if len(digits) > 20:  # with the sign
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _text(data: bytes, where: str) -> str:
    """UTF-8 is tried first: text of another encoding is hardly ever valid in it."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig", "cp949"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise _wrong(where, "text in none of UTF-8, UTF-16 and CP949", "JSON in UTF-8")


def _hw(images: object, where: str) -> tuple[int, int]:
    """From `IMAGES`; a third number, of channels, is allowed."""
    shape = images.get("PHOTO_FILE_MG") if isinstance(images, dict) else None
    if (
        not isinstance(shape, list)
        or len(shape) not in (2, 3)
        or any(type(size) is not int or size < 1 for size in shape)
        or shape[0] * shape[1] > MAX_PIXELS
    ):
        raise _wrong(
            where,
            f"IMAGES.PHOTO_FILE_MG {_shown(shape)}",
            f"[height, width], at most {MAX_PIXELS // 1_000_000} million pixels",
        )
    return shape[0], shape[1]


def _polygon(item: object, hw: tuple[int, int], where: str) -> tuple[Polygon | None, str]:
    """What is to be painted, if anything, and what is odd about it, if anything."""
    if not isinstance(item, dict):
        raise _wrong(where, _kind(item), "an object with OBJECT_CLASS_CODE and corners")
    missing = [key for key in _FIELDS if key not in item]
    if missing:
        raise _wrong(where, f"no {' and no '.join(missing)}", f"the fields {', '.join(_FIELDS)}")
    code, x, y = (item[key] for key in _FIELDS)
    if not isinstance(code, str) or code not in CLASS_OF_CODE:
        known = ", ".join(CLASS_OF_CODE)
        return None, f"of class code {_shown(code)}, which is none of {known}: left out"
    x, y = _coordinates(x, f"{where}, {_FIELDS[1]}"), _coordinates(y, f"{where}, {_FIELDS[2]}")
    if len(x) != len(y):
        raise _wrong(where, f"{len(x)} x for {len(y)} y", "as many of one as of the other")
    if len(x) < 3:
        return None, "of fewer than 3 corners: left out"
    points = np.stack([x, y], axis=1)
    inside, problem = _inside(points, hw)
    return Polygon(code, points) if inside else None, problem


def _inside(points: NDArray[np.float64], hw: tuple[int, int]) -> tuple[bool, str]:
    """Whether some of (n, 2) points' polygon can lie in the image, and what does not."""
    left, top = np.rint(points.min(axis=0)).tolist()
    right, bottom = np.rint(points.max(axis=0)).tolist()
    height, width = hw
    image = f"the image of {height}x{width}"
    if max(-left, -top, right, bottom) > MAX_COORDINATE:
        return False, f"with corners more than {MAX_COORDINATE} pixels outside {image}: left out"
    if min(right, bottom) < 0 or left >= width or top >= height:
        return False, f"wholly outside {image}: left out"
    # Some tools give the last pixel's outer edge, which is no mistake.
    outside = min(left, top) < 0 or right > width or bottom > height
    return True, f"partly outside {image}: cut at its border" if outside else ""


def _coordinates(values: object, where: str) -> NDArray[np.float64]:
    """(n,) float64, finite."""
    if not isinstance(values, list):
        raise _wrong(where, _kind(values), "a list of numbers")
    if len(values) > MAX_CORNERS:
        raise _wrong(where, f"{len(values)} corners", f"at most {MAX_CORNERS}")
    odd = [value for value in values if type(value) not in (int, float)]
    if odd:
        raise _wrong(where, f"{_shown(odd[0])} for a number", "numbers")
    array = np.array(values, np.float64)
    if not np.isfinite(array).all():  # 1e999
        raise _wrong(where, "a number beyond all limits", "pixels")
    return array


def _warning(problem: str, numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"polygon {numbers[0]} {problem}"
    return f"{len(numbers)} polygons, number {numbers[0]} the first, {problem}"


def _wrong(where: str, got: str, expected: str) -> DatasetError:
    return DatasetError(
        f"labels {printable(where)!r}: {got}",
        expected=expected,
        do="correct the file or leave the scene out",
    )


def _kind(value: object) -> str:
    """What JSON calls it."""
    if value is None:
        return "null or missing"
    names = {dict: "object", list: "list", str: "text", bool: "truth value"}
    return names.get(type(value), "number")


def _shown(value: object) -> str:
    """Short, whatever it is."""
    if isinstance(value, dict) or (
        # The text of lists in lists may need more depth than is left.
        isinstance(value, list)
        and (len(value) > 3 or any(isinstance(item, (list, dict)) for item in value))
    ):
        return f"{_kind(value)} of {len(value)}"
    return printable(repr(value))[:60]
