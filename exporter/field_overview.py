"""One picture of a whole field for people: what was flown over, its labels, and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from calibration.image_set.lettering import Lettering, lettering_for
from engines.field.palette import NODATA, UNNAMED_RGB
from exporter.picture_file import write_picture
from exporter.strips import overlay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engines.field.area import ClassArea, FieldAreas
    from exporter.strips import LabelMap, Palette, Picture

MAX_SIDE = 1600  # pixels of a panel
MAX_CLASSES = 40  # in the legend
STRETCH_PERCENT = (2.0, 98.0)  # that become 0 and 255 of stretched bands
TEXT_SIZE, LINE, MARGIN, SWATCH = 20, 30, 16, 20
COLUMN, NAME_WIDTH, NUMBER_ENDS = 520, 220, (340, 490)  # of the legend
PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def write_overview(
    title: str,
    image: Picture,
    label_map: LabelMap,
    areas: FieldAreas,
    palette: Palette,
    path: Path,
    *,
    alpha: float = 0.5,
) -> frozenset[str]:
    """Write the PNG `path`; returns the characters of its texts that no font here can draw.

    `image` (H, W, C) and `label_map` (H, W) are those of the whole field at `shown_hw`. They are
    shown beside each other, labels as a tint; below them the classes that occur, the largest first.
    Nodata is white. Of more than three channels the first three are shown. Raises OutputError.
    """
    rgb = np.repeat(image[:, :, :1], 3, axis=2) if image.shape[2] < 3 else image[:, :, :3].copy()
    tinted = overlay(rgb, label_map, palette, alpha)
    nowhere = label_map == NODATA
    rgb[nowhere] = tinted[nowhere] = PAPER
    entries = _entries(areas, palette)
    lettering = lettering_for([title, *(entry.name for entry in entries)], TEXT_SIZE)
    sheet = _sheet(title, (rgb, tinted), entries, lettering)
    write_picture(sheet, path, do="pass --no-overview")
    return lettering.missing


def shown_hw(height: int, width: int) -> tuple[int, int]:
    """The size of a field in the picture: at most 1600 pixels a side."""
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def stretched_for_eyes(image: Picture, valid: NDArray[np.bool_]) -> Picture:
    """Each channel of `image` from 0 to 255 between its percentiles where it is `valid`.

    For bands that were stretched between their extremes, where a glint makes all else dark.
    """
    if not valid.any():
        return image
    low, high = np.percentile(image[valid], STRETCH_PERCENT, axis=0)
    spread = np.maximum(high - low, 1)
    stretched: Picture = np.clip(np.rint((image - low) * 255 / spread), 0, 255).astype(np.uint8)
    return stretched


@dataclass(frozen=True)
class _Entry:
    """A line of the legend: its name, and to the right of it the share and the size."""

    rgb: Sequence[int]
    name: str
    numbers: Sequence[str] = ()


def _entries(areas: FieldAreas, palette: Palette) -> list[_Entry]:
    present = sorted((area for area in areas.classes if area.pixels), key=lambda a: -a.pixels)
    entries = [
        _Entry(palette[a.index] if a.index < len(palette) else UNNAMED_RGB, a.name, _numbers(a))
        for a in present[:MAX_CLASSES]
    ]
    if len(present) > MAX_CLASSES:
        entries.append(_Entry(PAPER, f"and {len(present) - MAX_CLASSES} smaller classes"))
    if areas.nodata.pixels:
        entries.append(_Entry(PAPER, areas.nodata.name, _numbers(areas.nodata)))
    return entries


def _numbers(area: ClassArea) -> tuple[str, str]:
    share = "" if area.percent is None else f"{area.percent:.1f} %"
    if area.hectares is None:
        return share, f"{area.pixels} pixels"
    return share, f"{area.hectares:.{2 if area.hectares >= 1 else 4}f} ha"


def _sheet(
    title: str, panels: Sequence[Picture], entries: Sequence[_Entry], lettering: Lettering
) -> Image.Image:
    """Panels beside each other, or above each other where the field is wide; the legend below."""
    height, width = panels[0].shape[:2]
    stacked = width > 1.25 * height
    across = width if stacked else 2 * width + MARGIN
    across, down = max(across, COLUMN), 2 * height + MARGIN if stacked else height
    columns = max(1, across // COLUMN)
    rows = -(-len(entries) // columns)
    top = LINE + 2 * MARGIN
    size = (across + 2 * MARGIN, top + down + 2 * MARGIN + rows * LINE)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), lettering.fitted(title, across), fill=_INK, font=lettering.font)
    for index, panel in enumerate(panels):
        left = MARGIN + (0 if stacked else index * (width + MARGIN))
        upper = top + (index * (height + MARGIN) if stacked else 0)
        sheet.paste(Image.fromarray(panel), (left, upper))
        draw.rectangle((left - 1, upper - 1, left + width, upper + height), outline=_FAINT)
    for index, entry in enumerate(entries):
        column, row = divmod(index, rows)
        left, upper = MARGIN + column * COLUMN, top + down + MARGIN + row * LINE
        box = (left, upper, left + SWATCH, upper + SWATCH)
        draw.rectangle(box, fill=tuple(entry.rgb), outline=_FAINT)
        name = lettering.fitted(entry.name, NAME_WIDTH)
        draw.text((left + SWATCH + 10, upper - 4), name, fill=_INK, font=lettering.font)
        for end, number in zip(NUMBER_ENDS, entry.numbers, strict=False):
            start = left + end - lettering.font.getlength(number)
            draw.text((start, upper - 4), number, fill=_INK, font=lettering.font)
    return sheet
