"""Pictures for the report: one photo, its truth, two predictions and where they differ."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from engines.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Picture: TypeAlias = "NDArray[np.uint8]"  # (H, W, 3) RGB
LabelMap: TypeAlias = "NDArray[np.uint8]"  # (H, W) class index, 255 = ignore
Palette: TypeAlias = Sequence[Sequence[int]]  # RGB per class
Panel: TypeAlias = "tuple[str, Picture]"

IGNORE = 255
MAX_SIDE = 480  # pixels of a panel; a report shows five beside each other
MAX_STRIPS = 12
MAX_URI_CHARACTERS = 2_200_000  # of all panels together: the page stays below 3 MB
UNNAMED_RGB = (128, 128, 128)  # outputs without a palette entry
DIFFERENT_RGB = (255, 0, 144)


@dataclass(frozen=True)
class Strip:
    """One image of the report: its file's name, percent of equal pixels, and titled pictures."""

    name: str
    agreement: float
    panels: Sequence[Panel]


def overlay(image: Picture, labels: LabelMap, palette: Palette, alpha: float = 0.6) -> Picture:
    """`image` tinted with the colour of each pixel's class; ignored pixels are hatched grey.

    `image` may have any number of channels: the first three are shown, one or two as grey. Raises
    InputError if `labels` has another size.
    """
    return _tinted(_rgb_from_channels(image), _same_size(labels, image), palette, alpha)


def strip_panels(
    image: Picture,
    truth: LabelMap | None,
    reference_labels: LabelMap,
    labels: LabelMap,
    palette: Palette,
    *,
    titles: tuple[str, str] = ("PyTorch", "INT8"),
) -> tuple[Panel, ...]:
    """Panels of at most 480 pixels a side: image, truth if there is one, both results, difference.

    All maps have the height and width of `image`, whose channels `overlay` describes. `titles`
    name `reference_labels` and `labels`. The difference is taken before anything is made smaller.
    """
    maps = [_same_size(m, image) for m in (reference_labels, labels)]
    different = (maps[0] != maps[1]).astype(np.uint8) * 255
    rgb = _rgb_from_channels(image)
    small = _smaller(rgb, MAX_SIDE)
    named = [("Truth", _same_size(truth, image))] if truth is not None else []
    named += list(zip(titles, maps, strict=True))
    panels = [("Image", small)]
    for title, label_map in named:
        panels.append((title, _tinted(small, _nearest(label_map, small), palette, 0.6)))
    panels.append(("Difference", _marked(small, _smaller(different, MAX_SIDE))))
    return tuple(panels)


def uris_from_strips(strips: Sequence[Strip]) -> list[list[str]]:
    """A data URI per panel of the first 12 strips, made smaller until all fit into the page."""
    for side in (MAX_SIDE, 400, 320, 240, 160, 96):
        uris = [
            [_uri_from_picture(_smaller(picture, side)) for _, picture in strip.panels]
            for strip in strips[:MAX_STRIPS]
        ]
        if sum(len(uri) for row in uris for uri in row) <= MAX_URI_CHARACTERS:
            break
    return uris


def _same_size(labels: LabelMap, image: Picture) -> LabelMap:
    if labels.shape != image.shape[:2]:
        raise InputError(
            f"labels of shape {labels.shape} for an image of {image.shape[:2]}",
            expected="labels at the image's own height and width",
            do="resize the labels first",
        )
    return labels


def _rgb_from_channels(image: Picture) -> Picture:
    planes = image if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(planes[:, :, :3])


def _tinted(rgb: Picture, labels: LabelMap, palette: Palette, alpha: float) -> Picture:
    colours = np.full((256, 3), UNNAMED_RGB, dtype=np.float32)
    named = np.asarray(palette, dtype=np.float32).reshape(-1, 3)[:IGNORE]
    colours[: len(named)] = named
    tinted = rgb * np.float32(1 - alpha) + colours[labels] * np.float32(alpha)
    rows, columns = np.indices(labels.shape)
    hatch = np.where((rows + columns) % 8 < 4, 96, 168)[..., np.newaxis]
    tinted = np.where((labels == IGNORE)[..., np.newaxis], hatch, tinted)
    return np.rint(tinted).astype(np.uint8)


def _marked(rgb: Picture, different: NDArray[np.uint8]) -> Picture:
    """Grey where all is equal; `different` is 255 times the share of differing pixels."""
    grey: NDArray[np.float32] = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32) * 0.5 + 24
    # Differences are often one pixel wide: a third of a shown pixel is enough for full colour.
    share = np.minimum(different.astype(np.float32) / 85, 1)[..., np.newaxis]
    marked = grey[..., np.newaxis] * (1 - share) + np.array(DIFFERENT_RGB) * share
    picture: Picture = np.rint(marked).astype(np.uint8)
    return picture


def _smaller(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """At most `side` pixels high and wide, by averaging; smaller pictures stay as they are."""
    from PIL import Image

    height, width = picture.shape[:2]
    if max(height, width) <= side:
        return picture
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _nearest(labels: LabelMap, like: Picture) -> LabelMap:
    (height, width), (rows, columns) = labels.shape, like.shape[:2]
    y = ((np.arange(rows) + 0.5) * height / rows).astype(np.intp)
    x = ((np.arange(columns) + 0.5) * width / columns).astype(np.intp)
    chosen: LabelMap = labels[y[:, np.newaxis], x]
    return chosen


def _uri_from_picture(picture: Picture) -> str:
    from PIL import Image

    file = io.BytesIO()
    # Full-resolution colour: thin class borders would bleed with the usual halved one.
    Image.fromarray(picture).save(file, "jpeg", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
