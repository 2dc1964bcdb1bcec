"""The field `bands` of `bundle.json`: read strictly, and said in words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Dict, Optional, Tuple

from engines.bands.recipe import recipe_from_record
from engines.bundle_fields import Field
from engines.bundle_records import MAX_SIDE, BandsInfo
from engines.errors import ConfigError

BAND_NAMES = {"R": "red", "G": "green", "B": "blue", "N": "near infrared", "E": "red edge"}


def bands_from_field(field: Field) -> BandsInfo:
    """The record, its recipe checked; BundleError where it is none that this version knows."""
    try:
        recipe = recipe_from_record(field.record())
    except ConfigError as error:
        raise field.refused(error.expected) from error
    fused_hw = field["fused_hw"].or_none(_hw_from_field)
    return BandsInfo(recipe.letters, recipe.norm, float(recipe.nodata), fused_hw)


def bands_text(info: Optional[BandsInfo]) -> Optional[str]:
    """One line for people: "green, near infrared, red edge (GNE, chw_minmax, nodata -10000)"."""
    if info is None:
        return None
    names = ", ".join(BAND_NAMES[letter] for letter in info.letters)
    text = f"{names} ({info.letters}, {info.norm}, nodata {info.nodata:g})"
    if info.fused_hw is not None:
        text += f"; graphs that take {info.fused_hw[0]}x{info.fused_hw[1]} float bands"
    return text


def bands_record(info: Optional[BandsInfo]) -> Optional[Dict[str, Any]]:
    """For a report: the fields of bundle.json, and `text`, the same in words."""
    return None if info is None else {**asdict(info), "text": bands_text(info)}


def _hw_from_field(field: Field) -> Tuple[int, int]:
    height, width = (side.integer(1, MAX_SIDE) for side in field.entries(2, 2))
    return height, width
