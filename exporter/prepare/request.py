"""What is asked of `prepare`, and what it says in the end."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.bands.recipe import LETTERS, BandRecipe
from engines.errors import ConfigError
from exporter.prepare.balance import BalanceRow
from exporter.prepare.split import SHARES, Shares

FORMATS: Mapping[str, str] = {"png": ".png", "npy": ".npy", "tiff": ".tif"}


@dataclass(frozen=True)
class PrepareRequest:
    """Raw scenes below `source` become the data set `out`.

    Each of `recipes` gives a composite of every scene, all with one norm and one nodata. `format`
    is a key of `FORMATS`, or None for PNG where all have three bands, else NPY. `jobs`: processes,
    None for one per core. `strict` stops at the first scene that cannot be used.
    """

    source: Path
    out: Path
    recipes: tuple[BandRecipe, ...]
    format: str | None = None
    shares: Shares = SHARES
    seed: int = 0
    jobs: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        assert len({recipe.letters for recipe in self.recipes}) == len(self.recipes) > 0
        assert len({(recipe.norm, recipe.nodata) for recipe in self.recipes}) == 1
        other = [recipe.letters for recipe in self.recipes if len(recipe.letters) != 3]
        if self.format == "png" and other:
            raise ConfigError(
                f"--format png for the {len(other[0])} bands {other[0]}",
                expected="npy or tiff, which hold any number of channels",
                do="leave --format out",
            )

    @property
    def suffix(self) -> str:
        """Of the composites."""
        of_three = all(len(recipe.letters) == 3 for recipe in self.recipes)
        return FORMATS[self.format or ("png" if of_three else "npy")]


@dataclass(frozen=True)
class LeftOut:
    """A file or scene that is not in the data set, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class PreparedRecord:
    """`roots` are the data sets' folders by letters; `reused` scenes were there already."""

    roots: Mapping[str, Path]
    scenes: int
    reused: int
    balance: tuple[BalanceRow, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]


def recipes_from_text(text: str, norm: str, nodata: float) -> tuple[BandRecipe, ...]:
    """Of "GNE", or of several separated by commas; ConfigError when one comes twice."""
    letters = [part.strip().upper() for part in text.split(",")]
    twice = [part for part in letters if letters.count(part) > 1]
    if twice:
        raise ConfigError(
            f"--bands {text!r} with {twice[0]} twice",
            expected="each combination once",
            do="leave the second one out",
        )
    return tuple(BandRecipe(part, norm, nodata) for part in letters)


def all_combinations(norm: str, nodata: float) -> tuple[BandRecipe, ...]:
    """The ten combinations of three bands, in the order R, G, B, N, E: GNE is one of them."""
    triples = itertools.combinations(LETTERS, 3)
    return tuple(BandRecipe("".join(triple), norm, nodata) for triple in triples)


def settings_record(request: PrepareRequest) -> dict[str, Any]:
    """What decides over the pixels, for a JSON file: scenes made with others are no use."""
    return {
        "recipes": [recipe.record() for recipe in request.recipes],
        "suffix": request.suffix,
    }
