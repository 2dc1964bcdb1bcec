"""`riceseg segment` of a field larger than the network: the labels and what people make of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engines.bands.names import is_band_name
from engines.bundle import Bundle, bundle_from_folder
from engines.bundle_runtime import Wish, open_bundle
from engines.errors import ConfigError, ImageError, OutputError, RicesegError
from engines.field.area import FieldAreas, areas_of_labels, write_area_csv
from engines.field.geotiff import opened_geotiff
from engines.field.ground import SQUARE_METRES, ground_of_dataset
from engines.field.label_raster import LabelRaster, opened_labels
from engines.field.network import FieldNetwork, network_from_bundle
from engines.field.pyramids import finish_labels
from engines.field.run import FieldOptions, segment_field
from engines.field.source import opened_field, paths_of_source, record_of_source
from engines.field.vectorize import write_polygons
from engines.progress import Progress, printable
from engines.reports.report import check_file_writable
from exporter.field_overview import shown_hw, stretched_for_eyes, write_overview
from exporter.segment_inputs import items_from

RECORD_TAG = "RICESEG"  # in the labels: which source, network and options they come from

Source = Path | dict[str, Path]


@dataclass(frozen=True)
class FieldRequest:
    """`out` is the GeoTIFF of labels; beside it lie NAME.csv, NAME.geojson and NAME.png.

    `alpha` is the weight of the colours in the overview, None for no overview. `min_area_m2` is
    that of the smallest polygon. `overwrite` replaces what another run has left; labels that the
    same call would write again are kept all the same, unless `options.resume` is off.
    """

    bundle: Path
    source: Path
    out: Path
    precision: str | None = None
    runtime: str = "auto"
    options: FieldOptions = field(default_factory=FieldOptions)
    area: bool = True
    vectorize: bool = False
    min_area_m2: float = 0.0
    alpha: float | None = 0.5
    overwrite: bool = False

    @property
    def products(self) -> dict[str, Path]:
        """What is wanted beside the labels, in the order in which it is made."""
        wanted = {
            "area": (self.area, ".csv"),
            "vectorize": (self.vectorize, ".geojson"),
            "overview": (self.alpha is not None, ".png"),
        }
        return {name: self.out.with_suffix(end) for name, (is_on, end) in wanted.items() if is_on}


@dataclass(frozen=True)
class FieldFiles:
    """Files `written` now and `kept` of an earlier call like this one; the areas of classes."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    areas: FieldAreas


def segment_field_to_files(request: FieldRequest, progress: Progress) -> FieldFiles:
    """Segment a raster of any size, and write its labels, areas, polygons and overview.

    Each file appears whole or not at all, the labels first, which takes longest: after a kill,
    Ctrl-C or an error the same call goes on with what is missing. Raises BundleError, ImageError,
    ConfigError or OutputError; what can be known beforehand is checked before the first window.
    """
    bundle = bundle_from_folder(request.bundle)
    source = _source(request.source, bundle)
    _check_places(request, source)
    if request.vectorize:
        _check_placed(source)
    wish = Wish(precision=request.precision, runtime=request.runtime)
    with progress.stage("open"):
        opened = open_bundle(request.bundle, bundle, wish, progress=progress)
    with opened.resources:
        progress.note(f"{opened.precision} on {opened.predictor.runtime}")
        network = network_from_bundle(bundle, opened)
        run = _Run(request, bundle, source, network, progress)
        written = run.labels()
        try:
            return run.with_products(written)
        except KeyboardInterrupt:
            progress.note(f"the labels are whole: {request.out}; the same command writes the rest")
            raise


@dataclass(frozen=True)
class _Run:
    request: FieldRequest
    bundle: Bundle
    source: Source
    network: FieldNetwork
    progress: Progress

    def labels(self) -> bool:
        """Write the labels, unless a call like this one has; False then."""
        request, record = self.request, self._record()
        if request.options.resume and _record_of_labels(request.out) == record:
            return False
        _check_free([request.out, *request.products.values()], overwrite=request.overwrite)
        segment_field(
            self.network,
            self.source,
            request.out,
            request.options,
            self.progress,
            finish=lambda path: self._finish(path, record),
        )
        return True

    def _finish(self, path: Path, record: str) -> None:
        with self.progress.stage("smaller copies"):
            finish_labels(path, {RECORD_TAG: record})

    def _record(self) -> str:
        options = self.request.options
        record = {
            "source": record_of_source(self.source),
            "bundle": self.network.identity,
            "overlap": options.overlap,
            "indexes": options.indexes,
            "nodata": options.nodata,
        }
        return json.dumps(record, sort_keys=True)

    def with_products(self, labels_are_new: bool) -> FieldFiles:
        request = self.request
        products = request.products
        kept = {} if labels_are_new or request.overwrite else self._already_there()
        makers: dict[str, Callable[[LabelRaster, FieldAreas, Path], None]] = {
            "area": self._area,
            "vectorize": self._polygons,
            "overview": self._overview,
        }
        with opened_labels(request.out) as raster:
            with self.progress.stage("areas"):
                areas = areas_of_labels(raster, self.bundle.classes, self.progress)
            if areas.problem:
                pixels = ": areas are told in pixels" if areas.nodata.hectares is None else ""
                self.progress.warn(f"{request.source.name}: {areas.problem}{pixels}")
            for name, path in products.items():
                if name not in kept:
                    makers[name](raster, areas, path)
        done = [path for name, path in products.items() if name not in kept]
        if labels_are_new:
            return FieldFiles((request.out, *done), (), areas)
        return FieldFiles(tuple(done), (request.out, *kept.values()), areas)

    def _already_there(self) -> dict[str, Path]:
        """Products of these labels: made after them. OutputError for others of that name."""
        made_ns = self.request.out.stat().st_mtime_ns
        there = {n: p for n, p in self.request.products.items() if os.path.lexists(p)}
        kept = {n: p for n, p in there.items() if p.is_file() and p.stat().st_mtime_ns >= made_ns}
        _check_free([path for name, path in there.items() if name not in kept], overwrite=False)
        return kept

    def _area(self, raster: LabelRaster, areas: FieldAreas, path: Path) -> None:
        write_area_csv(areas, path)

    def _polygons(self, raster: LabelRaster, areas: FieldAreas, path: Path) -> None:
        least = self.request.min_area_m2
        with self.progress.stage("polygons"):
            polygons = write_polygons(
                raster,
                self.bundle.classes,
                path,
                self.progress,
                min_hectares=least / SQUARE_METRES,
            )
        self.progress.note(f"{polygons.written} polygons: {path}")
        if polygons.left_out:
            self.progress.note(f"{polygons.left_out} polygons below {least:g} m² left out")
        if polygons.cuts:
            rows = ", ".join(map(str, polygons.cuts[:5]))
            self.progress.warn(
                f"too many polygons to hold: they are cut above {len(polygons.cuts)} rows ({rows})"
            )

    def _overview(self, raster: LabelRaster, areas: FieldAreas, path: Path) -> None:
        assert self.request.alpha is not None  # else it is no product
        hw = shown_hw(*raster.hw)
        options = self.request.options
        with self.progress.stage("overview"):
            with opened_field(
                self.source, self.network, indexes=options.indexes, nodata=options.nodata
            ) as field_raster:
                image, valid = field_raster.preview(hw)
                if field_raster.recipe is not None:
                    image = stretched_for_eyes(image, valid)
            missing = write_overview(
                self.request.source.name,
                image,
                raster.preview(hw),
                areas,
                self.bundle.palette,
                path,
                alpha=self.request.alpha,
            )
        if missing:
            shown = printable("".join(sorted(missing)[:8]))
            self.progress.warn(
                f"{path.name}: no font here has {shown}, shown as codes; for Korean install "
                "fonts-noto-cjk or fonts-nanum"
            )


def _source(path: Path, bundle: Bundle) -> Source:
    """One raster, or the files of one scene by letter."""
    if path.is_file() and not is_band_name(path.name):
        return path
    items, _ = items_from(path, bundle)
    if len(items) != 1:
        raise ImageError(
            f"{str(path)!r} with {len(items)} images",
            expected="one raster for --out NAME.tif",
            do="give one of them, or a folder as --out to segment all",
        )
    return items[0].source


def _check_places(request: FieldRequest, source: Source) -> None:
    """OutputError where a file would be written over what is read, or cannot be written."""
    read = {os.path.realpath(path) for path in paths_of_source(source)}
    for path in (request.out, *request.products.values()):
        if os.path.realpath(path) in read:
            raise OutputError(
                f"{str(path)!r}, which is read as well",
                expected="another name for --out",
                do="for example --out labels.tif",
            )
        check_file_writable(path)


def _check_placed(source: Source) -> None:
    """Before hours of work rather than after."""
    path = Path(paths_of_source(source)[0])
    dataset = opened_geotiff(path)
    try:
        ground = ground_of_dataset(dataset)
    finally:
        dataset.close()
    if not ground.placed:
        raise ConfigError(
            f"--vectorize for {str(path)!r}: {ground.problem}",
            expected="a georeference, without which polygons have no longitude and latitude",
            do="leave --vectorize out, or give the GeoTIFF its georeference (gdal_edit.py -a_srs)",
        )


def _check_free(paths: list[Path], *, overwrite: bool) -> None:
    for path in paths:
        if not os.path.lexists(path):
            continue
        if not path.is_file():
            raise OutputError(
                f"{str(path)!r}, which exists and is not a regular file",
                expected="a new name or older files to replace",
                do="choose another --out",
            )
        if not overwrite:
            raise OutputError(
                f"{str(path)!r}, which already exists",
                expected="a new name",
                do="choose another --out, or pass --overwrite to replace it",
            )


def _record_of_labels(path: Path) -> str | None:
    """What the labels that are there were made from; None for no such file or another one."""
    if not path.is_file():
        return None
    try:
        with opened_labels(path) as raster:
            return raster.tags.get(RECORD_TAG)
    except RicesegError:
        return None
