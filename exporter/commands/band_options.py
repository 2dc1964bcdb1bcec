"""The options that say which bands a network was trained on, and how they were composed."""

from __future__ import annotations

from typing import Any

import click

from engines.bands.recipe import LARGEST, NODATA, NORMS, BandRecipe
from engines.errors import ConfigError
from exporter.commands.options import Command, Number


class Nodata(Number):
    """Any finite float32; GDAL and QGIS write the smallest as nodata."""

    def __init__(self) -> None:
        super().__init__(-LARGEST, LARGEST)
        self.name, self.example = "VALUE", NODATA


def norm_options(function: Command) -> Command:
    """Adds --norm and --band-nodata, which `norm_and_nodata` reads."""
    for option in (
        click.option(
            "--band-nodata",
            type=Nodata(),
            help=f"Value of pixels without a measurement, as NaN always is.  [default: {NODATA:g}]",
        ),
        click.option(
            "--norm",
            type=click.Choice(NORMS),
            help="How a band becomes 0..255: chw_minmax stretches each band of a scene, uint8 takes"
            f" it as it is.  [default: {NORMS[0]}]",
        ),
    ):
        function = option(function)
    return function


def band_options(function: Command) -> Command:
    """Adds what `band_recipe_from` reads."""
    return click.option(
        "--bands",
        metavar="LETTERS",
        help="Bands of the training's composites in their order, such as GNE: R, G, B, N (near"
        " infrared), E (red edge).",
    )(norm_options(function))


def norm_and_nodata(norm: str | None, nodata: float | None) -> tuple[str, float]:
    """What was given, or else the defaults."""
    return norm or NORMS[0], NODATA if nodata is None else nodata


def band_recipe_from(values: dict[str, Any]) -> BandRecipe | None:
    """None without --bands; ConfigError for other letters, and for what is said about no bands."""
    letters, norm, nodata = values["bands"], values["norm"], values["band_nodata"]
    if letters is None:
        for name, value in (("--norm", norm), ("--band-nodata", nodata)):
            if value is not None:
                raise ConfigError(
                    f"{name} without --bands",
                    expected="the bands that it is about",
                    do=f"pass --bands, for example --bands GNE, or leave {name} out",
                )
        return None
    return BandRecipe(letters.upper(), *norm_and_nodata(norm, nodata))
