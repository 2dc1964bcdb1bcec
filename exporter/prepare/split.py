"""Which scenes to train, validate and test on: by shares, by seed, every class in every part."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from engines.errors import ConfigError

T = TypeVar("T")

PARTS = ("train", "val", "test")
SHARES = (0.8, 0.1, 0.1)  # of the published models

Shares = tuple[float, float, float]


def check_shares(shares: Sequence[float]) -> Shares:
    """Three shares that sum to 1, the first above 0; else ConfigError."""
    good = len(shares) == 3 and all(math.isfinite(s) and 0 <= s <= 1 for s in shares)
    if not good or not shares[0] > 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(
            f"shares {', '.join(f'{share:g}' for share in shares)} of train, val and test",
            expected="three numbers from 0 to 1 that sum to 1, the first above 0",
            do="give, for example, --split 0.8,0.1,0.1",
        )
    return shares[0], shares[1], shares[2]


def part_sizes(count: int, shares: Shares) -> tuple[int, int, int]:
    """How many of `count` scenes each part has: rounded down, the rest to the largest fractions."""
    exact = [count * share for share in shares]
    sizes = [math.floor(number + 1e-9) for number in exact]
    by_rest = sorted(range(3), key=lambda part: (sizes[part] - exact[part], part))
    for part in by_rest[: count - sum(sizes)]:
        sizes[part] += 1
    return sizes[0], sizes[1], sizes[2]


def split_scenes(
    classes: Mapping[str, Collection[int]],
    shares: Shares = SHARES,
    *,
    seed: int = 0,
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The part of each scene, by the scenes' names in the order of `classes`.

    `classes` are those present in each scene. The parts have exactly `part_sizes`, and the scenes
    of each class are divided by the shares as nearly as whole scenes and those sizes allow, the
    rarest class first (iterative stratification: Sechidis, Tsoumakas and Vlahavas, "On the
    Stratification of Multi-Label Data", ECML PKDD 2011). The answer depends on names, classes,
    shares and seed alone, not on the order. Scenes in `known` keep that part, of which the sizes
    may then differ; so a data set that grew leaves its test scenes what they were.
    """
    check_shares(shares)
    divided = _Division(classes, shares, seed)
    for name, part in (known or {}).items():
        if name in classes and part in PARTS:
            divided.put(name, PARTS.index(part))
    while (rarest := divided.rarest_class()) is not None:
        for name in divided.left_with(rarest):
            divided.put(name, divided.part_for(rarest))
    for name in divided.left_with(None):
        divided.put(name, divided.part_for(None))
    return {name: PARTS[divided.part_of[name]] for name in classes}


def draw_order(scenes: Mapping[str, T], seed: int) -> list[T]:
    """The values, in an order drawn by seed and names alone, the same on every machine."""
    return [scenes[name] for name in sorted(scenes, key=lambda name: _draw(name, seed))]


class _Division:
    """What each part still wants of each class, while scenes are given to it one by one."""

    def __init__(self, classes: Mapping[str, Collection[int]], shares: Shares, seed: int) -> None:
        self.part_of: dict[str, int] = {}
        self._classes = {name: frozenset(found) for name, found in classes.items()}
        self._order = sorted(self._classes, key=lambda name: _draw(name, seed))
        self._room = list(part_sizes(len(self._classes), shares))
        self._left: dict[int, int] = {}
        for found in self._classes.values():
            for index in found:
                self._left[index] = self._left.get(index, 0) + 1
        self._wanted = {
            index: [count * share for share in shares] for index, count in self._left.items()
        }

    def rarest_class(self) -> int | None:
        """Of those with scenes that have no part yet."""
        left = [(count, index) for index, count in self._left.items() if count]
        return min(left)[1] if left else None

    def left_with(self, index: int | None) -> list[str]:
        return [
            name
            for name in self._order
            if name not in self.part_of and (index is None or index in self._classes[name])
        ]

    def part_for(self, index: int | None) -> int:
        """The part with room that most wants a scene with class `index`, then any scene."""
        wanted = self._wanted[index] if index is not None else [0.0] * 3
        return max(
            range(3), key=lambda part: (self._room[part] > 0, wanted[part], self._room[part], -part)
        )

    def put(self, name: str, part: int) -> None:
        self.part_of[name] = part
        self._room[part] -= 1
        for index in self._classes[name]:
            self._left[index] -= 1
            self._wanted[index][part] -= 1


def _draw(name: str, seed: int) -> bytes:
    """A scene's place in the draw."""
    text = f"{seed}:{unicodedata.normalize('NFC', name)}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
