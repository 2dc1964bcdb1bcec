"""The colours of a label raster, as a colour map that GIS programs show."""

from __future__ import annotations

from typing import Dict, Sequence, Tuple

NODATA = 255  # in a label raster: no class was given here
UNNAMED_RGB = (128, 128, 128)  # outputs without a name have no colour of their own


def colormap_from_palette(palette: Sequence[Sequence[int]]) -> Dict[int, Tuple[int, int, int, int]]:
    """RGBA of every value 0..255, as rasterio's `write_colormap` takes them.

    Values beyond `palette` are grey; 255, which is nodata, is transparent.
    """
    colours = [*palette[:NODATA], *[UNNAMED_RGB] * (NODATA - len(palette))]
    named = {index: (rgb[0], rgb[1], rgb[2], 255) for index, rgb in enumerate(colours)}
    return {**named, NODATA: (0, 0, 0, 0)}


def class_name(classes: Sequence[str], index: int) -> str:
    """The name of a label; outputs that the bundle does not name are told by their number."""
    return classes[index] if index < len(classes) else f"class {index}"
