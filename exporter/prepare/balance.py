"""How much of each class is in each part: what tells whether a split can be trained on."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.prepare.rice_classes import RICE_CLASSES
from exporter.prepare.split import PARTS

ALL = "all"
HEADINGS = ("part", "class", "name", "name_ko", "scenes", "scenes_percent", "pixels",
            "pixels_percent")  # fmt: skip


@dataclass(frozen=True)
class BalanceRow:
    """One class in one part, or in all: in how many of its scenes, on how many of its pixels.

    `of_scenes` and `of_pixels` are those of the part.
    """

    part: str
    index: int
    scenes: int
    of_scenes: int
    pixels: int
    of_pixels: int

    @property
    def scenes_percent(self) -> float:
        return 100 * self.scenes / self.of_scenes if self.of_scenes else 0.0

    @property
    def pixels_percent(self) -> float:
        return 100 * self.pixels / self.of_pixels if self.of_pixels else 0.0


def balance_rows(
    pixels: Mapping[str, Sequence[int]], parts: Mapping[str, str]
) -> tuple[BalanceRow, ...]:
    """Rows of every part, then of all, from each scene's `pixels` of each class and its part."""
    rows: list[BalanceRow] = []
    for part in (*PARTS, ALL):
        counts = [pixels[name] for name, its in parts.items() if part in (its, ALL)]
        of_pixels = sum(map(sum, counts))
        for rice_class in RICE_CLASSES:
            of_class = [count[rice_class.index] for count in counts]
            present = sum(number > 0 for number in of_class)
            rows.append(
                BalanceRow(part, rice_class.index, present, len(counts), sum(of_class), of_pixels)
            )
    return tuple(rows)


def empty_parts(rows: Sequence[BalanceRow], shares: Sequence[float]) -> tuple[str, ...]:
    """A line for each part that was to have a share of the scenes and has none."""
    filled = {row.part for row in rows if row.of_scenes}
    return tuple(
        f"no scene in {part}: too few scenes for a share of {share:g}"
        for part, share in zip(PARTS, shares, strict=True)
        if share > 0 and part not in filled
    )


def absent_classes(rows: Sequence[BalanceRow]) -> tuple[str, ...]:
    """A line for each part with scenes that lacks classes of the data set, which it names."""
    present = {row.index for row in rows if row.part == ALL and row.scenes}
    lacking: dict[str, list[str]] = {}
    for row in rows:
        if row.index in present and not row.scenes and row.of_scenes:
            rice_class = RICE_CLASSES[row.index]
            lacking.setdefault(row.part, []).append(f"{rice_class.name} {rice_class.korean}")
    return tuple(
        f"no scene of {part} has {', '.join(names)}: too few scenes have "
        f"{'it' if len(names) == 1 else 'them'}"
        for part, names in lacking.items()
    )


def csv_from_balance(rows: Sequence[BalanceRow]) -> str:
    """The table with a heading; counts are whole numbers, percents have three digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADINGS)
    for row in rows:
        rice_class = RICE_CLASSES[row.index]
        writer.writerow(
            [row.part, row.index, rice_class.name, rice_class.korean, row.scenes,
             f"{row.scenes_percent:.3f}", row.pixels, f"{row.pixels_percent:.3f}"]
        )  # fmt: skip
    return text.getvalue()
