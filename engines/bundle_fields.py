"""Strict JSON of files that come from anywhere: bounded size, and typed access whose errors name
the place. bundle.json is the default; a `Source` makes it another file's.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Type, TypeVar

from engines.errors import BundleError, UserError

FILE_NAME = "bundle.json"

# A real bundle.json has 3 to 60 kB; the limit keeps a wrong or hostile file from filling memory.
MAX_JSON_BYTES = 4_000_000

EXPORT_AGAIN = "copy the folder from where it was made, or export the model again"
_T = TypeVar("_T")


class Source(NamedTuple):
    """What a document is called in an error, which error that is, its advice, its largest size."""

    name: str
    error: Type[UserError]
    do: str
    max_bytes: int


BUNDLE_JSON = Source(FILE_NAME, BundleError, EXPORT_AGAIN, MAX_JSON_BYTES)


def field_from_json(data: bytes, source: Source = BUNDLE_JSON) -> Field:
    """The root of a JSON document: UTF-8, finite numbers, no lone surrogates.

    Raises `source.error` for anything else.
    """
    if len(data) > source.max_bytes:
        raise source.error(
            f"{source.name} of more than {source.max_bytes / 1e6:g} MB",
            expected="a few kilobytes of JSON",
            do=source.do,
        )
    try:
        document = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_literal,
            parse_float=_finite,
            parse_int=_short_integer,
        )
        # Escapes such as \ud800 make text that can be neither printed nor used as a file name.
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise source.error(
            f"{source.name} that is not plain JSON ({error})",
            expected="JSON in UTF-8, with finite numbers",
            do=source.do,
        ) from error
    return Field(document, "", source)


class Field:
    """A value of a document with the place it stands at, so that every error can name it."""

    def __init__(self, value: Any, where: str, source: Source = BUNDLE_JSON) -> None:
        self.value, self.where, self.source = value, where, source

    def refused(self, expected: str) -> UserError:
        shown = repr(self.value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        kind = type(self.value).__name__
        return self.source.error(
            f"{shown} ({kind}) as {self.where} in {self.source.name}",
            expected=expected,
            do=self.source.do,
        )

    def __getitem__(self, key: str) -> Field:
        where = f"{self.where}.{key}" if self.where else key
        if not isinstance(self.value, dict):
            raise self.refused("an object")
        if key not in self.value:
            raise self.source.error(
                f"{self.source.name} without {where!r}",
                expected="every field of format version 1",
                do=self.source.do,
            )
        return Field(self.value[key], where, self.source)

    def record(self) -> Dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.refused("an object")
        return self.value

    def entries(self, low: int, high: int) -> List[Field]:
        if not isinstance(self.value, list) or not low <= len(self.value) <= high:
            count = str(low) if low == high else f"{low} to {high}"
            raise self.refused(f"a list of {count} values")
        return [
            Field(value, f"{self.where}[{i}]", self.source) for i, value in enumerate(self.value)
        ]

    def text(self, limit: int = 300) -> str:
        if not isinstance(self.value, str) or len(self.value) > limit:
            raise self.refused(f"text of at most {limit} characters")
        # A terminal obeys control characters, and names are printed.
        if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in self.value):
            raise self.refused("text without control characters")
        return self.value

    def one_of(self, *choices: str) -> str:
        if not isinstance(self.value, str) or self.value not in choices:
            raise self.refused(" or ".join(repr(choice) for choice in choices))
        return self.value

    def integer(self, low: int, high: int) -> int:
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.refused(f"an integer from {low} to {high}")
        return self.value

    def number(self) -> float:
        if type(self.value) not in (int, float) or not abs(self.value) <= 1e15:
            raise self.refused("a finite number")
        return float(self.value)

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.refused("true or false")
        return self.value

    def sha256(self) -> str:
        if not isinstance(self.value, str) or not re.fullmatch("[0-9a-f]{64}", self.value):
            raise self.refused("a SHA-256 of 64 lower-case hexadecimal digits")
        return self.value

    def relative_path(self) -> str:
        path = self.text()
        if "\\" in path or ":" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise self.refused("a relative path inside the bundle, with / between its parts")
        return path

    def or_none(self, read: Callable[[Field], _T]) -> Optional[_T]:
        return None if self.value is None else read(self)


def _refuse_literal(literal: str) -> Any:
    raise ValueError(f"number {literal[:20]}")


def _finite(literal: str) -> float:
    value = float(literal)
    return value if math.isfinite(value) else _refuse_literal(literal)


def _short_integer(literal: str) -> int:
    # Python 3.8 spends quadratic time on an integer of millions of digits.
    return int(literal) if len(literal) <= 20 else _refuse_literal(literal)
