"""A picture of the data set: scenes of every class and part, composites beside their masks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from calibration.image_set.facts import Picture
from calibration.image_set.lettering import Lettering, lettering_for
from engines.bands.recipe import BandRecipe
from engines.images import image_from_file, mask_from_file
from engines.progress import Progress
from exporter.prepare.places import Places
from exporter.prepare.pool import cores
from exporter.prepare.request import PrepareRequest
from exporter.prepare.rice_classes import PALETTE, RICE_CLASSES
from exporter.prepare.scene import FinishedScene, write_whole
from exporter.prepare.split import PARTS, draw_order

FILE_NAME = "sheet.png"
SCENES_PER_CLASS = 2  # of each part
COLUMNS = 4
SIDE = 160  # pixels of a picture; a scene shows two beside each other
MAX_THREADS = 4  # each has a whole scene in memory
TEXT_SIZE, LINE, MARGIN = 12, 17, 6
_PAPER, _INK, _FAINT, _GROUND = (255, 255, 255), (20, 20, 20), (110, 110, 110), (236, 236, 236)


@dataclass(frozen=True)
class _Cell:
    title: str
    note: str
    image: Path
    mask: Path


def write_sheets(
    scenes: Sequence[FinishedScene], request: PrepareRequest, places: Places, progress: Progress
) -> tuple[Path, ...]:
    """sheet.png in each combination's folder; OutputError when it cannot be written."""
    chosen = chosen_scenes(scenes, seed=request.seed)
    paths: list[Path] = []
    missing: frozenset[str] = frozenset()
    for number, recipe in enumerate(request.recipes):
        cells = [_cell(scene, number, places) for scene in chosen]
        title = (
            f"{recipe.letters} {recipe.norm}, RGB = {', '.join(recipe.channels[:3])}; "
            f"{len(chosen)} of {len(scenes)} scenes"
        )
        lettering = lettering_for(_texts(title, cells), TEXT_SIZE)
        sheet = _sheet(title, cells, recipe, lettering)
        file = io.BytesIO()
        sheet.save(file, format="PNG", compress_level=1)  # a third of the time of the default
        paths.append(places.roots[recipe.letters] / FILE_NAME)
        write_whole(paths[-1], file.getvalue())
        missing |= lettering.missing
        progress.advance(number + 1, len(request.recipes))
    if missing:
        progress.warn(
            f"no font here has {''.join(sorted(missing)[:10])!r}: escaped in the contact sheet; a "
            "font like Noto Sans CJK (apt install fonts-noto-cjk) shows Korean"
        )
    return tuple(paths)


def chosen_scenes(scenes: Sequence[FinishedScene], *, seed: int) -> tuple[FinishedScene, ...]:
    """Up to two scenes of each class in each part, by part and name; the same for a seed."""
    chosen: dict[str, FinishedScene] = {}
    ordered = draw_order({scene.name: scene for scene in scenes}, seed)
    for part in PARTS:
        for rice_class in reversed(RICE_CLASSES):  # rare ones first, whose scenes show others too
            having = [s for s in ordered if s.part == part and rice_class.index in s.classes]
            wanted = SCENES_PER_CLASS - sum(s.name in chosen for s in having)
            others = [s for s in having if s.name not in chosen]
            chosen.update({s.name: s for s in others[: max(0, wanted)]})
    return tuple(sorted(chosen.values(), key=lambda s: (PARTS.index(s.part), s.name)))


def _cell(scene: FinishedScene, number: int, places: Places) -> _Cell:
    names = ", ".join(RICE_CLASSES[index].korean for index in sorted(scene.classes))
    image, mask = scene.files[2 * number], scene.files[2 * number + 1]
    return _Cell(
        f"{scene.part}: {scene.name}", names, places.out / image.place, places.out / mask.place
    )


def _texts(title: str, cells: Sequence[_Cell]) -> list[str]:
    legend = [_legend_text(index) for index in range(len(RICE_CLASSES))]
    return [title, *legend, *(text for cell in cells for text in (cell.title, cell.note))]


def _legend_text(index: int) -> str:
    return f"{index} {RICE_CLASSES[index].name} {RICE_CLASSES[index].korean}"


def _sheet(
    title: str, cells: Sequence[_Cell], recipe: BandRecipe, lettering: Lettering
) -> Image.Image:
    width, height = 2 * SIDE + 3 * MARGIN, SIDE + 2 * LINE + 2 * MARGIN
    top = 2 * LINE + 3 * MARGIN
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height + top), _PAPER)
    draw = ImageDraw.Draw(sheet)
    fitting = lettering.fitted(title, sheet.width - 2 * MARGIN)
    draw.text((MARGIN, MARGIN), fitting, fill=_INK, font=lettering.font)
    _draw_legend(draw, 2 * MARGIN + LINE, lettering)
    for index, (cell, pictures) in enumerate(zip(cells, _pictures(cells, recipe), strict=True)):
        row, column = divmod(index, COLUMNS)
        left, upper = column * width + MARGIN, row * height + top
        for place, picture in zip((left, left + SIDE + MARGIN), pictures, strict=True):
            draw.rectangle((place, upper, place + SIDE - 1, upper + SIDE - 1), fill=_GROUND)
            small = Image.fromarray(picture)
            sheet.paste(
                small, (place + (SIDE - small.width) // 2, upper + (SIDE - small.height) // 2)
            )
        for line, (text, ink) in enumerate(((cell.title, _INK), (cell.note, _FAINT))):
            fitting = lettering.fitted(text, width - 2 * MARGIN)
            place_xy = (left, upper + SIDE + line * LINE)
            draw.text(place_xy, fitting, fill=ink, font=lettering.font)
    return sheet


def _pictures(cells: Sequence[_Cell], recipe: BandRecipe) -> list[tuple[Picture, Picture]]:
    """(h, w, 3) of each composite and its mask. Most of the time goes into decoding them."""

    def pictures(cell: _Cell) -> tuple[Picture, Picture]:
        image = image_from_file(cell.image, channels=len(recipe.letters))
        colours = np.array(PALETTE, np.uint8)
        return _shown(_smaller(image)), colours[_smaller(mask_from_file(cell.mask))]

    with ThreadPoolExecutor(min(MAX_THREADS, cores())) as threads:
        return list(threads.map(pictures, cells))


def _smaller(array: Picture) -> Picture:
    """At most `SIDE` on a side, by nearest pixel, which leaves indices what they are."""
    height, width = array.shape[:2]
    step = max(1.0, max(height, width) / SIDE)
    rows, columns = (
        ((np.arange(max(1, round(size / step))) + 0.5) * step).astype(np.intp).clip(max=size - 1)
        for size in (height, width)
    )
    small: Picture = array[rows[:, np.newaxis], columns]
    return small


def _shown(image: Picture) -> Picture:
    """(H, W, 3): of one or two channels the first as grey, of more the first three."""
    channels = [0, 1, 2] if image.shape[2] >= 3 else [0, 0, 0]
    return np.ascontiguousarray(image[:, :, channels])


def _draw_legend(draw: ImageDraw.ImageDraw, upper: int, lettering: Lettering) -> None:
    left = float(MARGIN)
    for index, rice_class in enumerate(RICE_CLASSES):
        box = (left, upper + 1, left + LINE - 4, upper + LINE - 3)
        draw.rectangle(box, fill=rice_class.rgb, outline=_INK)
        text = lettering.drawable(_legend_text(index))
        draw.text((left + LINE, upper), text, fill=_INK, font=lettering.font)
        left += LINE + lettering.font.getlength(text) + 3 * MARGIN
