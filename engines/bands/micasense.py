"""Which band a MicaSense file is: by its metadata, else by its number.

A RedEdge writes a capture as five files, IMG_0001_1.tif to IMG_0001_5.tif: blue, green, red, near
infrared, red edge. Other models of the maker have further bands, so the band's name in the file's
XMP (Camera:BandName) decides where it is there. The lenses look from different places: bands of a
raw capture are shifted against each other by some pixels, and nothing here aligns them.
"""

from __future__ import annotations

import re
from typing import Optional

from engines.bands.tiff import BandFile, opened_tiff
from engines.bands.tiff_pages import pages_of_tiff
from engines.errors import ImageError

LETTERS_BY_NUMBER = "BGRNE"

_BY_NAME = {"blue": "B", "green": "G", "red": "R", "nir": "N", "rededge": "E"}

# As an element or as an attribute, both of which XMP allows. Short and without nested repetition:
# the text is the file's, and a regular expression can take for ever.
_ELEMENT = re.compile(rb"[<:]BandName>([^<]{1,80})<")
_ATTRIBUTE = re.compile(rb":BandName ?= ?[\"']([^\"'<]{1,80})[\"']")


def micasense_letter(source: BandFile, number: int) -> Optional[str]:
    """The letter of the capture's file `number`, from 1; None for a band of another kind (thermal).

    A file that cannot be read is taken by its number; the error comes when its pixels are read.
    """
    try:
        name = band_name_in_file(source)
    except ImageError:
        name = ""
    if name:
        return _BY_NAME.get(re.sub(r"[\s_-]+", "", name).lower())
    return LETTERS_BY_NUMBER[number - 1] if 1 <= number <= len(LETTERS_BY_NUMBER) else None


def band_name_in_file(source: BandFile) -> str:
    """Camera:BandName of a TIFF's XMP, "" without one; ImageError when the file cannot be read."""
    with opened_tiff(source) as (file, where):
        xmp = pages_of_tiff(file, where)[0].xmp
    found = _ELEMENT.search(xmp) or _ATTRIBUTE.search(xmp)
    return found[1].decode("utf-8", "replace").strip() if found else ""
