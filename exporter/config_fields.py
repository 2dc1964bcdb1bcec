"""Fields of a configuration as what they must be: a value of that kind, or None."""

from __future__ import annotations

import math
from typing import Any, cast


def dict_of(value: object) -> dict[str, Any]:
    """`value`, or an empty dictionary for what is none."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def text_of(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) < 100 and value.isprintable() else None


def kind_of(record: dict[str, Any]) -> str | None:
    """The `type` of a layer without its registry: "ResNet" of "mmdet.ResNet"."""
    kind = text_of(record.get("type"))
    return None if kind is None else kind.rpartition(".")[2]


def flag_of(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def count_of(value: object) -> int | None:
    """A whole number from 1 to 2^31 - 1."""
    return value if type(value) is int and 0 < value < 2**31 else None


def numbers_of(value: object) -> tuple[float, ...] | None:
    """Up to 64 finite numbers."""
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 64:
        return None
    if not all(type(v) in (int, float) and math.isfinite(v) for v in value):
        return None
    return tuple(float(v) for v in value)


def counts_of(value: object, *, length: int, largest: int) -> tuple[int, ...] | None:
    """1 to `length` whole numbers from 1 to `largest`."""
    if not isinstance(value, list | tuple) or not 0 < len(value) <= length:
        return None
    if not all(type(v) is int and 0 < v <= largest for v in value):
        return None
    return tuple(value)


def pair_of(value: object) -> tuple[int, int] | None:
    """Two counts; a single one stands for both."""
    pair = value if isinstance(value, list | tuple) else (value, value)
    counts = [count_of(part) for part in pair]
    if len(counts) != 2 or counts[0] is None or counts[1] is None:
        return None
    return counts[0], counts[1]
