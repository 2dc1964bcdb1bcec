"""Options of `riceseg segment` for a field larger than the network (--out NAME.tif)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from engines.commands.parsing import is_count
from engines.errors import ConfigError
from engines.progress import printable
from exporter.commands.options import Number
from exporter.commands.show import table_console

if TYPE_CHECKING:
    from engines.field.area import FieldAreas
    from exporter.field_segmentation import FieldFiles

FIELD_SUFFIXES = (".tif", ".tiff")  # of --out, for a field

FIELD_EXAMPLES = """
\b
With --out NAME.tif the image is a GeoTIFF of any size, or the band files of
one scene. Windows that overlap are segmented and blended; NAME.tif has labels
with the georeference, nodata (255), the palette and smaller copies for GIS
programs. Beside it lie NAME.csv (hectares of each class), NAME.png (a picture
with legend) and, with --vectorize, NAME.geojson. After a kill or Ctrl-C the
same command goes on.
  riceseg segment build/rice field.tif --out labels.tif
  riceseg segment build/rice field.tif --out labels.tif --vectorize
"""


class BandNumbers(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Numbers of a raster's bands, from 1."""

    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(is_count(part) and int(part) >= 1 for part in parts):
            raise ConfigError(
                f"--rgb {value!r}",
                expected="numbers of bands from 1, separated by commas",
                do="give, for example, --rgb 1,2,3",
            )
        return tuple(map(int, parts))


_FIELD_OPTIONS = (
    click.option("--overlap", type=Number(0, 0.5), default=0.25, show_default=True,
                 help="Part of a window's side that it shares with the next one."),
    click.option("--rgb", "indexes", type=BandNumbers(),
                 help="Bands of the GeoTIFF that become the channels.  [default: its colours, or"
                 " the bundle's bands]"),
    click.option("--nodata", type=float, help="Value that stands for no data."),
    click.option("--area/--no-area", default=True, show_default=True,
                 help="NAME.csv: pixels and hectares of each class."),
    click.option("--vectorize", is_flag=True,
                 help="NAME.geojson: polygons with class and hectares."),
    click.option("--min-area", "min_area_m2", type=Number(0, math.inf), default=0.0, metavar="M2",
                 help="Leave polygons below so many square metres out."),
    click.option("--overview/--no-overview", default=True, show_default=True,
                 help="NAME.png: image and labels for people."),
    click.option("--resume/--no-resume", default=True, show_default=True,
                 help="Go on where an interrupted run of the same command ended."),
    click.option("--overwrite", is_flag=True, help="Replace files of another run."),
)  # fmt: skip

_OF_FIELDS = ("overlap", "indexes", "nodata", "area", "vectorize", "min_area_m2", "overview",
              "resume", "overwrite")  # fmt: skip
_OF_IMAGES = ("mode", "fused", "overlay", "skip_bad", "convert_images", "ray")


def field_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what `field_values` takes out again."""
    for option in reversed(_FIELD_OPTIONS):
        function = option(function)
    return function


def field_values(values: dict[str, Any], out: Path, *, is_field: bool) -> dict[str, Any]:
    """Takes the options of fields out of `values`; ConfigError for one of the other kind of run."""
    context = click.get_current_context()
    unfit = [
        name
        for name in (_OF_IMAGES if is_field else _OF_FIELDS)
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if unfit:
        raise ConfigError(
            f"{_spelling(context, unfit)} with --out {str(out)!r}",
            expected="an option for folders of images" if not is_field else "one for fields",
            do="leave it out"
            if is_field
            else "give --out NAME.tif to segment one GeoTIFF of any size, or leave it out",
        )
    of_field = {name: values.pop(name) for name in _OF_FIELDS}
    if of_field["min_area_m2"] and not of_field["vectorize"]:
        raise ConfigError(
            "--min-area without --vectorize",
            expected="both: it is the area of the smallest polygon",
            do="add --vectorize, or leave --min-area out",
        )
    return of_field


def _spelling(context: click.Context, names: Iterable[str]) -> str:
    options = {option.name: option.opts[0] for option in context.command.params}
    return ", ".join(options[name] for name in names)


def show_field(files: FieldFiles) -> None:
    """Areas as a table, and the files, on stdout."""
    table_console().print(_table(files.areas))
    for title, paths in (("written", files.written), ("already there", files.kept)):
        for path in paths:
            click.echo(f"{title}: {printable(str(path))}")


def _table(areas: FieldAreas) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("class", overflow="fold")
    for heading in ("pixels", "", "hectares"):
        table.add_column(heading, justify="right", no_wrap=True)
    for area in (*areas.classes, areas.nodata):
        table.add_row(
            str(area.index),
            Text(printable(area.name)),
            str(area.pixels),
            "" if area.percent is None else f"{area.percent:.1f} %",
            "" if area.hectares is None else f"{area.hectares:.4f}",
        )
    return table
