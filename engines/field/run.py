"""Labels of a raster of any size: windows, blended where they overlap, in bounded memory.

The same call goes on where an interrupted one ended.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from engines.bands.composite import BandLimits
from engines.errors import ConfigError, ImageError, OutputError
from engines.field.grid import axis_of_windows
from engines.field.labels_file import write_labels_file
from engines.field.network import FieldNetwork
from engines.field.palette import NODATA
from engines.field.pipeline import label_stripe
from engines.field.raster import FieldRaster
from engines.field.source import (
    FieldSource,
    RasterPath,
    opened_field,
    paths_of_source,
    record_of_source,
)
from engines.field.stripe import MIB, Grid, Memory, stripes_of_grid, windows_of_stripe
from engines.field.work import Work
from engines.progress import Progress

__all__ = [
    "FieldOptions",
    "FieldResult",
    "FieldSource",
    "RasterPath",
    "opened_field",
    "segment_field",
]

LEAST_MEMORY_MIB = 64


@dataclass(frozen=True)
class FieldOptions:
    """How a raster is read and cut.

    `overlap` is the part of a window's side, 0 to 0.5, that it shares with the next one, at least.
    `indexes` are the raster's bands (from 1) that become the channels, or the recipe's letters, in
    that order; None chooses them. `nodata` replaces the value that the file records. `memory_mib`
    bounds what is held beside the network's own; `batch` None is what the bundle was made for.
    `resume` False starts over where an interrupted run left its work.
    """

    overlap: float = 0.25
    indexes: Optional[Tuple[int, ...]] = None
    nodata: Optional[float] = None
    batch: Optional[int] = None
    memory_mib: int = 896
    resume: bool = True

    def __post_init__(self) -> None:
        if self.memory_mib < LEAST_MEMORY_MIB or (self.batch is not None and self.batch < 1):
            raise ConfigError(
                f"{self.memory_mib} MiB and batch {self.batch}",
                expected=f"{LEAST_MEMORY_MIB} MiB or more, and a batch of 1 or more",
                do="leave them out",
            )


@dataclass(frozen=True)
class FieldResult:
    """`labels` is the finished GeoTIFF of `hw` pixels; `pixels` counts each label, by index.

    `windows` were run now, `skipped` lie on nodata alone; `resumed` after an interruption.
    `limits` are those that the bands were stretched by, None without a recipe that stretches.
    """

    labels: Path
    hw: Tuple[int, int]
    pixels: Tuple[int, ...]
    nodata_pixels: int
    windows: int
    skipped: int
    resumed: bool
    limits: Optional[BandLimits]


def segment_field(
    network: FieldNetwork,
    source: FieldSource,
    out: Path,
    options: FieldOptions,
    progress: Progress,
    *,
    finish: Optional[Callable[[Path], None]] = None,
) -> FieldResult:
    """Write the labels of `source` to the GeoTIFF `out`, 255 where it has no data.

    `source` is a GeoTIFF, or one single-band GeoTIFF for each of the recipe's letters; a pixel has
    no data where none of the bands that are read has, or where the file's mask or alpha says so.
    Windows of the network's size at the raster's own scale overlap by `options.overlap`; each
    pixel's label is that of the largest weighted sum of their logits, or, from a network that
    gives labels alone, that of the window whose centre is nearest. The labels depend on these
    windows only, not on memory, batch or interruptions.

    Until the end the work lies in `.NAME.work/` beside `out`, and the same call goes on with it
    after a kill, an error or Ctrl-C. `finish` is called with the finished file before it takes
    its name, to add overviews or tags, and must leave it whole.

    Raises ImageError for a file that is damaged, of another kind or without any data, ConfigError
    for options, or work of an interrupted run, that do not fit, OutputError for a full disk.
    """
    _check_out(out, source)
    with contextlib.ExitStack() as stack:
        raster = stack.enter_context(
            opened_field(source, network, indexes=options.indexes, nodata=options.nodata)
        )
        plan = _plan(network, raster, options)
        work = stack.enter_context(Work(out, raster.hw))
        with _kept_work_told(work, len(plan.grid.rows), progress):
            resumed = _begin(work, plan, source, progress)
            counts = _label(work, plan, progress)
            work.save()
            pixels = write_labels_file(
                work, out, raster.georeference, network.palette, progress, finish
            )
        work.remove()
    return FieldResult(
        labels=out,
        hw=raster.hw,
        pixels=tuple(int(count) for count in pixels[: network.outputs]),
        nodata_pixels=int(pixels[NODATA]),
        windows=counts[0],
        skipped=counts[1],
        resumed=resumed,
        limits=raster.limits,
    )


@dataclass(frozen=True)
class _Plan:
    """What is to be done, all of it known before the first window."""

    network: FieldNetwork
    raster: FieldRaster
    options: FieldOptions
    grid: Grid
    memory: Memory
    stripes: List[Tuple[int, int]]


def _plan(network: FieldNetwork, raster: FieldRaster, options: FieldOptions) -> _Plan:
    predictor = network.predictor
    blended = predictor.has_logits
    size = predictor.input_hw
    rows, columns = (
        axis_of_windows(raster.canvas_hw[axis], size[axis], options.overlap, blended=blended)
        for axis in (0, 1)
    )
    total = options.memory_mib * MIB - raster.cache_bytes
    memory = Memory(network.outputs if blended else 0, predictor.channels, total)
    wished = options.batch or network.batch
    batch = predictor.fixed_batch or memory.batch(wished, size)
    grid = Grid(rows, columns, batch)
    return _Plan(network, raster, options, grid, memory, stripes_of_grid(grid, memory))


def _begin(work: Work, plan: _Plan, source: FieldSource, progress: Progress) -> bool:
    """Open the work, of an interrupted run if there is one, and find the limits of the bands."""
    about = _about(plan, source)
    record = work.resume(about) if plan.options.resume else None
    raster = plan.raster
    if record is not None and work.stripes == plan.stripes:
        if raster.recipe is not None:
            raster.limits = _limits_from_record(record, len(raster.recipe.letters))
        progress.note(f"goes on with the work of an interrupted run: {work.folder}")
        return True
    limits = None if raster.recipe is None else raster.measure_limits(progress)
    work.begin(about, {} if limits is None else asdict(limits), plan.stripes)
    if not plan.network.predictor.has_logits:
        progress.warn(
            f"{plan.network.predictor.name} gives labels only: where windows meet there may be "
            "seams, which a bundle exported with --output both would blend"
        )
    return False


def _about(plan: _Plan, source: FieldSource) -> Dict[str, Any]:
    """Everything that the labels, or the way they are kept, depend on, by what users call it."""
    network, options = plan.network, plan.options
    recipe = network.recipe
    return {
        "source": record_of_source(source),
        "bundle": {
            **network.identity,
            "outputs": network.outputs,
            "window": list(network.predictor.input_hw),
            "logits": network.predictor.has_logits,
            "bands": None if recipe is None else recipe.record(),
        },
        "options": {
            "overlap": options.overlap,
            "indexes": None if options.indexes is None else list(options.indexes),
            "nodata": options.nodata,
            "memory_mib": options.memory_mib,
            "batch": options.batch,
        },
    }


def _label(work: Work, plan: _Plan, progress: Progress) -> Tuple[int, int]:
    """Label what is not labelled yet; how many windows were run, and left out without data."""
    total = sum(windows_of_stripe(plan.grid, stripe) for stripe in plan.stripes)
    known = run = skipped = 0
    rows = len(plan.grid.rows)
    size = (plan.grid.rows.size, plan.grid.columns.size)
    beside = plan.memory.blends_beside(plan.grid.batch, size)
    with progress.stage("segment"):
        for index, stripe in enumerate(plan.stripes):
            known += windows_of_stripe(plan.grid, stripe) * work.done[index] // rows
            steps = label_stripe(plan.network, plan.raster, plan.grid, work, index, beside=beside)
            with contextlib.closing(steps):  # type: ignore[type-var]
                for windows, filled in steps:
                    run, skipped, known = run + filled, skipped + windows - filled, known + windows
                    progress.advance(min(known, total), total)
    return run, skipped


@contextlib.contextmanager
def _kept_work_told(work: Work, rows: int, progress: Progress) -> Iterator[None]:
    """Tell how to go on after an error or Ctrl-C; nothing stays if none of `rows` was done."""
    try:
        yield
    except BaseException as error:
        # When every window is done only a raster without data is an ImageError.
        without_data = isinstance(error, ImageError) and set(work.done) == {rows}
        if not work.is_begun:
            work.remove_if_unused()
        elif not any(work.done) or without_data:
            work.remove()
        else:
            with contextlib.suppress(OutputError):  # then some of it is done again
                work.save()
            progress.note(
                f"kept in {work.folder}: the same command goes on from there; delete that folder "
                "to give it up"
            )
        raise


def _limits_from_record(record: Dict[str, Any], count: int) -> BandLimits:
    """What `_begin` has written; ConfigError for anything else."""
    low, high = record.get("low"), record.get("high")
    for values in (low, high):
        if (
            not isinstance(values, list)
            or len(values) != count
            or not all(isinstance(value, float) for value in values)
        ):
            raise ConfigError(
                "the work of an interrupted run without the limits of its bands",
                expected="what that run has left",
                do="start over with --no-resume",
            )
    return BandLimits(tuple(low or ()), tuple(high or ()))


def _check_out(out: Path, source: FieldSource) -> None:
    if out.is_dir():
        raise OutputError(
            f"{str(out)!r}, which is a folder",
            expected="a file",
            do="give --out the name of the label file, for example labels.tif",
        )
    for path in paths_of_source(source):
        if out.exists() and os.path.exists(path) and os.path.samefile(out, path):
            raise OutputError(
                f"{str(out)!r}, which is what shall be read",
                expected="another file",
                do="choose another --out",
            )
