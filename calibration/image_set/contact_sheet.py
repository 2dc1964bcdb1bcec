"""All chosen images on one picture, small, with the line of the list and the name of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from calibration.image_set.facts import Picture
from calibration.image_set.lettering import Lettering, lettering_for

MAX_IMAGES = 1024  # with which the sheet is 4000 pixels wide and has 85 MB in memory
MAX_COLUMNS = 24
THUMBNAIL_WH = (160, 120)
TEXT_SIZE, LINE, MARGIN = 11, 15, 5
_PAPER, _INK, _FAINT, _GROUND = (255, 255, 255), (20, 20, 20), (110, 110, 110), (236, 236, 236)


@dataclass(frozen=True)
class Caption:
    """Below a thumbnail: the name of the file, and a line on what it stands for."""

    name: str
    note: str


def contact_sheet(
    title: str,
    captions: Sequence[Caption],
    pictures: Iterable[Picture],
    *,
    on_picture: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[Image.Image, Lettering]:
    """The sheet as RGB, and the lettering, whose `missing` characters are shown as escapes.

    `pictures` (H, W, C) of uint8 belong to `captions` in their order, are numbered from 1, and are
    taken one at a time; of more than 1024 only the first ones are drawn, and the title says so.
    """
    shown = captions[:MAX_IMAGES]
    if len(shown) < len(captions):
        title = f"{title} (the first {MAX_IMAGES} are shown)"
    lettering = lettering_for(
        [title, *(text for caption in shown for text in (caption.name, caption.note))], TEXT_SIZE
    )
    columns = min(MAX_COLUMNS, max(4, round(len(shown) ** 0.5)))
    width, height = THUMBNAIL_WH[0] + 2 * MARGIN, THUMBNAIL_WH[1] + 2 * LINE + 2 * MARGIN
    rows = -(-len(shown) // columns)
    top = LINE + 2 * MARGIN
    sheet = Image.new("RGB", (columns * width, rows * height + top), _PAPER)
    draw = ImageDraw.Draw(sheet)
    fitting = lettering.fitted(title, sheet.width - 2 * MARGIN)
    draw.text((MARGIN, MARGIN), fitting, fill=_INK, font=lettering.font)
    for index, (caption, picture) in enumerate(zip(shown, pictures, strict=False)):
        row, column = divmod(index, columns)
        left, upper = column * width + MARGIN, row * height + top + MARGIN
        _draw_cell(draw, sheet, (left, upper), thumbnail(picture))
        below = upper + THUMBNAIL_WH[1] + 1
        for line, (text, ink) in enumerate(
            ((f"{index + 1}: {caption.name}", _INK), (caption.note, _FAINT))
        ):
            place = (left, below + line * LINE)
            fitting = lettering.fitted(text, THUMBNAIL_WH[0])
            draw.text(place, fitting, fill=ink, font=lettering.font)
        on_picture(index + 1, len(shown))
    return sheet, lettering


def thumbnail(picture: Picture) -> Image.Image:
    """At most 160x120 and never enlarged; of one or two channels the first, of more three."""
    channels = [0, 1, 2] if picture.shape[2] >= 3 else [0, 0, 0]
    small = Image.fromarray(np.ascontiguousarray(picture[:, :, channels]))
    small.thumbnail(THUMBNAIL_WH, Image.Resampling.BILINEAR, reducing_gap=3.0)
    return small


def _draw_cell(
    draw: ImageDraw.ImageDraw, sheet: Image.Image, place: tuple[int, int], small: Image.Image
) -> None:
    left, upper = place
    width, height = THUMBNAIL_WH
    draw.rectangle((left, upper, left + width - 1, upper + height - 1), fill=_GROUND)
    sheet.paste(small, (left + (width - small.width) // 2, upper + (height - small.height) // 2))
