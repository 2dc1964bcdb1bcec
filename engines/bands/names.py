"""File names of band files: the raw scenes' and those of a MicaSense camera."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

from engines.bands.recipe import LETTERS

TIFF_SUFFIXES = (".tif", ".tiff")

# R20220726A25B1036.tif: the letter is the 9th character from the end, four digits follow it.
_RAW = re.compile(rf"(.*)([{LETTERS}])([0-9]{{4}})", re.DOTALL)
_MICASENSE = re.compile(r"(IMG_[0-9]{1,9})_([0-9]{1,2})", re.IGNORECASE)


class RawName(NamedTuple):
    """Band `letter` of a `scene`, which is named like the file of its band R, without suffix."""

    scene: str
    letter: str

    def of_band(self, letter: str) -> str:
        """The name, without suffix, of another band of the scene."""
        return self.scene[:-5] + letter + self.scene[-4:]


class MicaSenseName(NamedTuple):
    """File `number`, from 1, of a `capture` such as IMG_0001."""

    capture: str
    number: int


def raw_band_name(path_name: str) -> Optional[RawName]:
    """Scene and letter of a raw band file's name or path; None for another name or suffix."""
    name = _without_folders(path_name)
    if not _is_tiff(name):
        return None
    found = _RAW.fullmatch(name.rpartition(".")[0])
    return RawName(f"{found[1]}R{found[3]}", found[2]) if found else None


def micasense_name(path_name: str) -> Optional[MicaSenseName]:
    """Capture and number of a MicaSense file's name or path; None for another name or suffix."""
    name = _without_folders(path_name)
    if not _is_tiff(name):
        return None
    found = _MICASENSE.fullmatch(name.rpartition(".")[0])
    return MicaSenseName(found[1], int(found[2])) if found else None


def is_band_name(path_name: str) -> bool:
    """Whether it is named like a raw band file or one of a MicaSense camera."""
    return raw_band_name(path_name) is not None or micasense_name(path_name) is not None


def _without_folders(path_name: str) -> str:
    # Names in a zip file may have either separator, whatever this machine's is.
    return path_name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _is_tiff(name: str) -> bool:
    return name.lower().endswith(TIFF_SUFFIXES)
