"""The kinds of value that a field of a report may hold, and their check."""

from __future__ import annotations

from typing import Any, Callable, Dict

from engines.errors import BundleError

MAX_NAME = 300

KINDS: Dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "name": lambda value: isinstance(value, str) and 0 < len(value) <= MAX_NAME,
    "number": lambda value: type(value) in (int, float) and abs(value) <= 1e15,
    "amount": lambda value: KINDS["number"](value) and value >= 0,
    # A mean of percents may be rounded to a little more than 100.
    "percent": lambda value: KINDS["number"](value) and -1e-6 <= value <= 100 + 1e-6,
    "count": lambda value: type(value) is int and value >= 0,
    "flag": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_EXPECTED = {
    "name": f"a text of 1 to {MAX_NAME} characters or null",
    "amount": "a number or null, and none below 0",
    "percent": "a number or null, from 0 to 100",
    "object": "an object or null",
}


def checked_record(value: Any, where: str, **kinds: str) -> Dict[str, Any]:
    """`value` with all keys of `kinds`, which are None where missing; BundleError on a misfit."""
    require(isinstance(value, dict), value, where, "an object")
    for key, kind in kinds.items():
        item = value.get(key)
        fits = item is None or KINDS[kind](item)
        require(fits, item, f"{where}.{key}", _EXPECTED.get(kind, f"a {kind} or null"))
    return {**dict.fromkeys(kinds), **value}


def require(fits: bool, value: Any, where: str, expected: str) -> None:
    if not fits:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise BundleError(
            f"{shown} as {where} of a report", expected=expected, do="evaluate the model again"
        )
