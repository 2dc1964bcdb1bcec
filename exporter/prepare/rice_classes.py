"""The classes of the rice data set: names, Korean names and colours, by index."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RiceClass:
    """`index` is the value in the masks, `rgb` its colour in their palette."""

    index: int
    name: str
    korean: str
    rgb: tuple[int, int, int]


RICE_CLASSES = (
    RiceClass(0, "background", "배경", (0, 0, 0)),
    RiceClass(1, "normal", "정상", (8, 39, 245)),
    RiceClass(2, "doyeol", "도열", (0, 229, 245)),
    RiceClass(3, "dobok", "도복", (225, 0, 26)),
    RiceClass(4, "gyulju", "결주", (250, 0, 204)),
    RiceClass(5, "bujin", "부진", (245, 123, 0)),
)
PALETTE = tuple(rice_class.rgb for rice_class in RICE_CLASSES)


def classes_text() -> str:
    """classes.txt, as `--classes` reads it: a name and its colour in each line."""
    lines = (f"{item.name} #{bytes(item.rgb).hex()}\n" for item in RICE_CLASSES)
    return "".join(lines)
