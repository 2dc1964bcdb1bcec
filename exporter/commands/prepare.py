"""`riceseg prepare`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from engines.errors import ConfigError
from engines.progress import printable
from exporter.commands.band_options import norm_and_nodata, norm_options
from exporter.commands.options import PATH, Numbers, ray_option
from exporter.commands.show import table_console
from exporter.live import progress_for

if TYPE_CHECKING:
    from engines.bands.recipe import BandRecipe
    from exporter.prepare.pool import Spread
    from exporter.prepare.request import PreparedRecord

EXAMPLES = """
\b
Examples:
  riceseg prepare raw/ --out data/ --bands GNE
  riceseg prepare raw/ --out five/ --bands RGBNE --format npy
  riceseg prepare raw/ --out all/ --all-combinations --jobs 8
  riceseg prepare /nas/raw --out /nas/data --bands GNE --ray auto
  riceseg export --checkpoint best.pth --int8 --calib data --val data

\b
SRC holds band files such as R20220726A25B1036.tif and a JSON with the name of
band R, in folders of any depth and in zip files, which are not unpacked. Three
bands become PNGs with the bytes that OpenCV writes of them, in the order given:
a reader of GNE has E in red, N in green and G in blue. Other numbers of bands
become .npy or, with --format tiff, a page for each band. DATA/prepare.json says
what was left out. The same command again goes on where it stopped, and does only
what has changed.
"""


@click.command(epilog=EXAMPLES)
@click.argument("source", type=PATH, metavar="SRC")
@click.option("--out", type=PATH, required=True, help="Folder of the data set.")
@click.option("--bands", help="Letters of R, G, B, N, E in their order; several with commas.")
@click.option(
    "--all-combinations",
    is_flag=True,
    help="Every combination of three bands, each as a data set of its own: DATA/GNE and so on.",
)
@norm_options
@click.option(
    "--format",
    type=click.Choice(["png", "npy", "tiff"]),
    help="Of the composites.  [default: png for three bands, else npy]",
)
@click.option(
    "--split",
    "shares",
    type=Numbers(),
    default="0.8,0.1,0.1",
    show_default=True,
    help="Shares of train, val and test, each with every class.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split.")
@click.option("--jobs", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option(
    "--skip-bad/--strict",
    "skip_bad",
    default=True,
    show_default=True,
    help="Leave scenes out that cannot be used, or stop at the first one.",
)
@ray_option
def prepare(
    source: Path,
    out: Path,
    bands: str | None,
    all_combinations: bool,
    norm: str | None,
    band_nodata: float | None,
    ray: str | None,
    **values: Any,
) -> None:
    """Make composites, masks and a split of the five-band scenes in SRC."""
    from exporter.prepare.request import PrepareRequest
    from exporter.prepare.run import prepare as prepare_scenes
    from exporter.prepare.split import check_shares

    recipes = _recipes(bands, all_combinations, *norm_and_nodata(norm, band_nodata))
    shares, strict = check_shares(values.pop("shares")), not values.pop("skip_bad")
    request = PrepareRequest(source, out, recipes, shares=shares, strict=strict, **values)
    record = prepare_scenes(request, progress_for(sys.stderr), spread=_spread(ray, request.jobs))
    table_console().print(_table(record))
    _show(record, out)


def _spread(ray: str | None, workers: int | None) -> Spread:
    if ray is None:
        from exporter.prepare.pool import outcomes_here, start_server

        if workers != 1:
            start_server()  # It loads packages while the scenes are looked for.
        return outcomes_here
    from exporter.cluster.address import check_address
    from exporter.cluster.scenes import outcomes_on_ray

    check_address(ray)  # before anything is made
    return functools.partial(outcomes_on_ray, address=ray, workers=workers)


def _recipes(
    bands: str | None, all_combinations: bool, norm: str, nodata: float
) -> tuple[BandRecipe, ...]:
    from exporter.prepare.request import all_combinations as every
    from exporter.prepare.request import recipes_from_text

    if (bands is not None) == all_combinations:
        raise ConfigError(
            "--bands and --all-combinations" if all_combinations else "no --bands",
            expected="one of --bands and --all-combinations",
            do="give the bands of the checkpoint, for example --bands GNE",
        )
    return recipes_from_text(bands, norm, nodata) if bands is not None else every(norm, nodata)


def _show(record: PreparedRecord, out: Path) -> None:
    again = f", {record.reused} of them from before" if record.reused else ""
    click.echo(f"{record.scenes} scenes{again}: {_shown(out)}")
    for root in record.roots.values():
        click.echo(f"contact sheet: {_shown(root / 'sheet.png')}")
    if record.left_out:
        summary = _shown(out / "prepare.json")
        click.echo(f"left out: {len(record.left_out)}, named with reasons in {summary}")


def _table(record: PreparedRecord) -> Table:
    """Scenes with each class and its share of the pixels, in each part and in all."""
    from exporter.prepare.rice_classes import RICE_CLASSES

    parts = list(dict.fromkeys(row.part for row in record.balance))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("scenes (pixels)", no_wrap=True)
    for part in parts:
        table.add_column(part, justify="right", no_wrap=True)
    for item in RICE_CLASSES:
        rows = [row for row in record.balance if row.index == item.index]
        table.add_row(
            f"{item.name} {item.korean}",
            *(
                Text(f"{row.scenes} ({row.pixels_percent:.1f} %)", "" if row.scenes else "red")
                for row in rows
            ),
        )
    totals = {row.part: row.of_scenes for row in record.balance}
    table.add_row("all", *(str(totals[part]) for part in parts))
    return table


def _shown(path: Path) -> str:
    return printable(str(path))
