"""What is made of a finished label raster: areas, polygons, smaller copies, the overview."""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.features import rasterize, shapes
from rasterio.warp import transform_geom

from calibration.image_set import lettering
from engines.errors import ImageError, OutputError
from engines.field.area import FieldAreas, areas_of_labels, write_area_csv
from engines.field.label_raster import opened_labels
from engines.field.palette import colormap_from_palette
from engines.field.pyramids import finish_labels, pyramid_factors
from engines.field.regions import RegionTracer
from engines.field.vectorize import Polygons, write_polygons
from engines.progress import SilentProgress
from exporter.field_overview import shown_hw, stretched_for_eyes, write_overview

Labels = NDArray[np.uint8]

NAMES = ("배경", "정상", "도열병")
PALETTE = ((0, 0, 0), (8, 39, 245), (0, 229, 245))
NORTH_UP = Affine(0.05, 0, 200_000, 0, -0.05, 500_000)
COS, SIN = math.cos(math.radians(25)), math.sin(math.radians(25))
ROTATED = Affine(0.05 * COS, 0.05 * SIN, 200_000, 0.05 * SIN, -0.05 * COS, 500_000)
DEGREES = Affine(1e-6, 0, 127, 0, -1e-6, 36)
TURNED_DEGREES = Affine(2e-6 * COS, 1e-6 * SIN, 127, 2e-6 * SIN, -1e-6 * COS, 36)


def write_labels(
    path: Path, labels: Labels, crs: int | None = 5186, transform: Affine | None = NORTH_UP
) -> Path:
    place: dict[str, Any] = {} if crs is None else {"crs": CRS.from_epsg(crs)}
    if transform is not None:
        place["transform"] = transform
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "tiled": True}
    size = {"height": labels.shape[0], "width": labels.shape[1]}
    with (
        pytest.warns() if transform is None else _nothing(),
        rasterio.open(
            path, "w", **profile, **size, **place, blockxsize=16, blockysize=16, compress="deflate"
        ) as file,
    ):
        file.write(labels, 1)
        file.write_colormap(1, colormap_from_palette(PALETTE))
    return path


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...


def patches(hw: tuple[int, int], seed: int = 0, classes: int = 3) -> Labels:
    """Patches and single pixels of every class, with nodata in a corner and here and there."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (-(-hw[0] // 5), -(-hw[1] // 4)))
    labels = np.kron(coarse, np.ones((5, 4), np.int64))[: hw[0], : hw[1]].astype(np.uint8)
    noisy = rng.random(hw) < 0.1
    labels[noisy] = rng.integers(0, classes, int(noisy.sum()))
    labels[rng.random(hw) < 0.03] = 255
    labels[: hw[0] // 4, : hw[1] // 4] = 255
    return labels


def areas_of(path: Path, names: Sequence[str] = NAMES) -> FieldAreas:
    with opened_labels(path) as raster:
        return areas_of_labels(raster, names, SilentProgress())


def polygons_of(path: Path, out: Path, **options: Any) -> tuple[Polygons, list[dict[str, Any]]]:
    with opened_labels(path) as raster:
        told = write_polygons(raster, NAMES, out, SilentProgress(), **options)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert set(found) == {"type", "features"}
    assert found["type"] == "FeatureCollection"
    return told, found["features"]


def strip_m2(south: float, north: float, degrees: float) -> float:
    """Between two parallels on WGS 84, from its radii of curvature, by Simpson's rule."""
    a, e2 = 6378137.0, (2 - 1 / 298.257223563) / 298.257223563
    latitude = np.radians(np.linspace(south, north, 201))
    curve = 1 - e2 * np.sin(latitude) ** 2
    meridian, normal = a * (1 - e2) / curve**1.5, a / curve**0.5
    values = meridian * normal * np.cos(latitude)
    weights = np.ones(201)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    step = math.radians(north - south) / 200
    return float(values @ weights) * step / 3 * math.radians(degrees)


# --- areas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "transform", "pixel_m2"),
    [
        (5186, NORTH_UP, 0.05**2),
        (32652, Affine(0.1, 0, 3e5, 0, -0.2, 3.9e6), 0.02),
        (5186, ROTATED, 0.05**2),
        (2236, Affine(2, 0, 6e5, 0, -2, 6e5), (2 * 1200 / 3937) ** 2),  # US survey feet
        (2054, Affine(-1, 0, 0, 0, 1, 3e6), 1.0),  # westing and southing
    ],
)
def test_areas_on_a_map_are_pixels_times_their_size_in_the_maps_unit(
    crs: int, transform: Affine, pixel_m2: float, tmp_path: Path
) -> None:
    labels = patches((60, 90))
    areas = areas_of(write_labels(tmp_path / "labels.tif", labels, crs, transform))
    assert areas.problem == ""
    for area in (*areas.classes, areas.nodata):
        count = int((labels == area.index).sum())
        assert area.pixels == count > 0
        assert area.hectares == pytest.approx(count * pixel_m2 / 10_000, rel=1e-12)
    assert [area.name for area in areas.classes] == list(NAMES)
    whole = (labels != 255).sum()
    expected = [100 * (labels == index).sum() / whole for index in range(3)]
    assert [area.percent for area in areas.classes] == pytest.approx(expected)
    assert areas.nodata.percent is None


@pytest.mark.parametrize("pixel", [1e-6, 0.02])
def test_areas_in_degrees_are_those_on_the_ellipsoid(pixel: float, tmp_path: Path) -> None:
    labels = patches((80, 40))
    path = write_labels(tmp_path / "labels.tif", labels, 4326, Affine(pixel, 0, 127, 0, -pixel, 36))
    areas = areas_of(path)
    rows = [strip_m2(36 - (row + 1) * pixel, 36 - row * pixel, pixel) for row in range(80)]
    for area in (*areas.classes, areas.nodata):
        expected = (labels == area.index).sum(axis=1) @ rows / 10_000
        assert area.hectares == pytest.approx(expected, rel=1e-9)
    shares = [area.hectares or 0 for area in areas.classes]
    percents = [area.percent for area in areas.classes]
    assert percents == pytest.approx([100 * share / sum(shares) for share in shares])


def test_areas_of_a_raster_turned_in_degrees_are_those_on_the_ellipsoid(tmp_path: Path) -> None:
    labels = patches((70, 90))
    areas = areas_of(write_labels(tmp_path / "labels.tif", labels, 4326, TURNED_DEGREES))
    column, row = np.meshgrid(np.arange(90) + 0.5, np.arange(70) + 0.5)
    t = TURNED_DEGREES
    latitude = t.d * column + t.e * row + t.f
    size = abs(t.a * t.e - t.b * t.d)  # square degrees
    a, e2 = 6378137.0, (2 - 1 / 298.257223563) / 298.257223563
    curve = 1 - e2 * np.sin(np.radians(latitude)) ** 2
    each = a**2 * (1 - e2) / curve**2 * np.cos(np.radians(latitude)) * size * (math.pi / 180) ** 2
    for area in areas.classes:
        expected = each[labels == area.index].sum() / 10_000
        assert area.hectares == pytest.approx(expected, rel=1e-7)


def test_web_mercator_is_measured_on_the_ellipsoid_and_says_so(tmp_path: Path) -> None:
    labels = patches((64, 64))
    transform = Affine(0.5, 0, 14_140_000, 0, -0.5, 4_300_000)
    areas = areas_of(write_labels(tmp_path / "labels.tif", labels, 3857, transform))
    assert "areas +53 % off" in areas.problem
    radius = 6378137.0

    def latitude(row: int) -> float:
        return math.degrees(math.atan(math.sinh((4_300_000 - 0.5 * row) / radius)))

    degrees = math.degrees(0.5 / radius)
    rows = [strip_m2(latitude(row + 1), latitude(row), degrees) for row in range(64)]
    for area in areas.classes:
        expected = (labels == area.index).sum(axis=1) @ rows / 10_000
        assert area.hectares == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("crs", "transform", "problem"),
    [
        (None, None, "no coordinate system"),
        (None, NORTH_UP, "no coordinate system"),
        (5186, None, "no place in its coordinate system"),
        (4978, NORTH_UP, "neither of a map nor of the earth"),  # x, y, z from the earth's centre
        (4326, NORTH_UP, "outside their coordinate system"),  # metres called degrees
    ],
)
def test_without_a_place_there_are_pixels_only(
    crs: int | None, transform: Affine | None, problem: str, tmp_path: Path
) -> None:
    labels = patches((40, 40))
    path = write_labels(tmp_path / "labels.tif", labels, crs, transform)
    areas = areas_of(path)
    assert problem in areas.problem
    assert [area.hectares for area in (*areas.classes, areas.nodata)] == [None] * 4
    whole = (labels != 255).sum()
    assert areas.classes[1].percent == pytest.approx(100 * (labels == 1).sum() / whole)
    with pytest.raises(ImageError, match=problem):
        polygons_of(path, tmp_path / "labels.geojson")
    assert not (tmp_path / "labels.geojson").exists()


def test_control_points_are_told_from_no_place_at_all(tmp_path: Path) -> None:
    points = [
        rasterio.control.GroundControlPoint(row, column, 127 + column * 1e-6, 36 - row * 1e-6)
        for row, column in ((0, 0), (0, 40), (40, 0), (40, 40))
    ]
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 40, "width": 40}
    with rasterio.open(
        tmp_path / "labels.tif", "w", **profile, gcps=points, crs=CRS.from_epsg(4326)
    ) as file:
        file.write(np.zeros((40, 40), np.uint8), 1)
    assert "gdalwarp" in areas_of(tmp_path / "labels.tif").problem


def test_outputs_without_a_name_are_told_by_their_number(tmp_path: Path) -> None:
    labels = np.full((20, 20), 254, np.uint8)
    labels[0, :3] = 7
    areas = areas_of(write_labels(tmp_path / "labels.tif", labels))
    told = [(area.index, area.name, area.pixels) for area in areas.classes]
    assert told == [(0, "배경", 0), (1, "정상", 0), (2, "도열병", 0), (7, "class 7", 3),
                    (254, "class 254", 397)]  # fmt: skip
    assert areas.nodata.pixels == 0


def test_excel_reads_the_names_of_the_csv_and_runs_none(tmp_path: Path) -> None:
    labels = patches((40, 40))
    names = ("벼, 정상", "=1+1", 'a"b')
    path = tmp_path / "넓이.csv"
    write_area_csv(areas_of(write_labels(tmp_path / "labels.tif", labels), names), path)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["벼, 정상", "'=1+1", 'a"b', "no data"]
    assert [row["class"] for row in rows] == ["0", "1", "2", "255"]
    for row in rows:
        count = int((labels == int(row["class"])).sum())
        assert int(row["pixels"]) == count
        assert float(row["hectares"]) == pytest.approx(count * 0.05**2 / 1e4, abs=5e-7)
    assert sum(float(row["percent"] or 0) for row in rows) == pytest.approx(100, abs=1e-3)
    assert rows[-1]["percent"] == ""


def test_a_csv_of_a_field_without_a_place_has_empty_hectares(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.tif", patches((40, 40)), None, None)
    write_area_csv(areas_of(path), tmp_path / "labels.csv")
    with open(tmp_path / "labels.csv", encoding="utf-8-sig", newline="") as file:
        assert [row["hectares"] for row in csv.DictReader(file)] == [""] * 4


def test_other_rasters_and_damaged_ones_are_no_labels(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.tif", patches((200, 200)))
    whole = path.read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="cannot be read"):
        areas_of(tmp_path / "cut.tif")
    (tmp_path / "damaged.tif").write_bytes(whole[:2000] + bytes(300) + whole[2300:])
    with pytest.raises(ImageError, match="cannot be read from row 0 on"):
        areas_of(tmp_path / "damaged.tif")
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 20, "width": 20}
    with rasterio.open(tmp_path / "rgb.tif", "w", **profile, transform=NORTH_UP) as file:
        file.write(np.zeros((3, 20, 20), np.uint8))
    with pytest.raises(ImageError, match="3 bands of uint8"):
        areas_of(tmp_path / "rgb.tif")


# --- polygons ---------------------------------------------------------------------------------


def signed_area(ring: Sequence[Sequence[float]]) -> float:
    x, y = (np.array(ring) - np.array(ring[0])).T
    return float(x[:-1] @ y[1:] - y[:-1] @ x[1:]) / 2


def rasterized(
    features: Sequence[dict[str, Any]], hw: tuple[int, int], crs: int, transform: Affine
) -> Labels:
    """The labels that the polygons say, each pixel at its centre; none may lie in two."""
    drawn = np.full(hw, 255, np.uint8)
    for feature in features:
        geometry = transform_geom("EPSG:4326", CRS.from_epsg(crs), feature["geometry"])
        inside = rasterize([(geometry, 1)], out_shape=hw, transform=transform, dtype="uint8") == 1
        assert (drawn[inside] == 255).all()
        assert inside.sum() == feature["properties"]["pixels"]
        drawn[inside] = feature["properties"]["class"]
    return drawn


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (5186, NORTH_UP),
        (5186, ROTATED),
        (5186, Affine(0.05, 0, 200_000, 0, 0.05, 500_000)),  # the first row in the south
        (2236, Affine(1, 0, 6e5, 0, -1, 6e5)),
        (2054, Affine(-1, 0, 0, 0, 1, 3e6)),
        (3857, Affine(0.5, 0, 14_140_000, 0, -0.5, 4_300_000)),
        (4326, DEGREES),
        (4326, TURNED_DEGREES),
    ],
)
def test_the_polygons_drawn_again_are_the_labels(
    crs: int, transform: Affine, tmp_path: Path
) -> None:
    labels = patches((48, 40), seed=crs)
    path = write_labels(tmp_path / "labels.tif", labels, crs, transform)
    told, features = polygons_of(path, tmp_path / "labels.geojson")
    np.testing.assert_array_equal(rasterized(features, labels.shape, crs, transform), labels)
    # GDAL's polygonizer counts the same regions.
    whole = list(shapes(labels, mask=labels != 255, connectivity=4))
    assert told.written == len(features) == len(whole)
    for feature in features:
        outer, *holes = feature["geometry"]["coordinates"]
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        assert signed_area(outer) > 0  # counter-clockwise with north up, RFC 7946, 3.1.6
        assert all(signed_area(hole) < 0 for hole in holes)
        for ring in (outer, *holes):
            assert ring[0] == ring[-1]
            points = [tuple(point) for point in ring[:-1]]
            assert len(set(points)) == len(points) >= 4
        assert feature["properties"]["name"] == NAMES[feature["properties"]["class"]]
    for area in areas_of(path).classes:
        sizes = [f["properties"]["hectares"] for f in features
                 if f["properties"]["class"] == area.index]  # fmt: skip
        assert sum(sizes) == pytest.approx(area.hectares, rel=1e-4)


def traced(labels: Labels, rows: int, **options: Any) -> tuple[list[Any], list[int]]:
    """Regions in an order of their own, rings from their first corner on."""
    tracer = RegionTracer(labels.shape[1], **options)
    regions = [
        r for top in range(0, len(labels), rows) for r in tracer.add(labels[top : top + rows])
    ]
    regions += tracer.finish()
    told = []
    for region in regions:
        rings = [[tuple(point) for point in ring.tolist()] for ring in region.rings]
        turned = [ring[ring.index(min(ring)) :] + ring[: ring.index(min(ring))] for ring in rings]
        told.append((region.label, region.pixels, turned[0], sorted(turned[1:])))
    return sorted(told), tracer.cuts


@pytest.mark.parametrize("seed", range(6))
def test_regions_do_not_depend_on_the_rows_given_at_a_time(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = patches((40, 33), seed, classes=2 + seed % 2)
    whole, cuts = traced(labels, 40)
    assert cuts == []
    assert traced(labels, 1) == (whole, [])
    assert traced(labels, 7) == (whole, [])
    monkeypatch.setattr("engines.field.regions.STRIP_PIXELS", 100)
    assert traced(labels, 40) == (whole, [])


def test_a_region_with_a_hole_that_touches_its_edge_at_a_corner() -> None:
    labels = np.array([[1, 1, 1], [1, 255, 1], [1, 1, 255]], np.uint8)
    (region,), _ = traced(labels, 3)
    outer = [(0, 0), (3, 0), (3, 2), (2, 2), (2, 3), (0, 3)]
    assert region == (1, 7, outer, [[(1, 1), (1, 2), (2, 2), (2, 1)]])


def test_pixels_that_touch_at_a_corner_alone_are_two_regions() -> None:
    labels = np.array([[1, 255], [255, 1]], np.uint8)
    regions, _ = traced(labels, 1)
    assert [(label, pixels) for label, pixels, _, _ in regions] == [(1, 1), (1, 1)]


def test_outlines_that_are_too_many_to_hold_are_cut_and_stay_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.field.regions.STRIP_PIXELS", 400)
    labels = patches((60, 50), 3)
    path = write_labels(tmp_path / "labels.tif", labels)
    whole, _ = polygons_of(path, tmp_path / "whole.geojson")
    told, features = polygons_of(path, tmp_path / "cut.geojson", max_held_bytes=5_000)
    assert len(told.cuts) >= 1
    assert told.written > whole.written
    np.testing.assert_array_equal(rasterized(features, (60, 50), 5186, NORTH_UP), labels)


def test_small_polygons_are_left_out_and_leave_their_holes(tmp_path: Path) -> None:
    labels = np.ones((30, 30), np.uint8)
    labels[5, 5] = 2
    labels[10:20, 10:20] = 0
    for crs, transform, pixel in ((5186, NORTH_UP, 0.05**2), (4326, DEGREES, 0.01)):
        path = write_labels(tmp_path / "labels.tif", labels, crs, transform)
        told, features = polygons_of(
            path, tmp_path / "labels.geojson", min_hectares=50 * pixel / 10_000
        )
        assert (told.written, told.left_out) == (2, 1)
        sizes = {f["properties"]["class"]: f["properties"]["pixels"] for f in features}
        assert sizes == {0: 100, 1: 900 - 101}
        rings = {f["properties"]["class"]: len(f["geometry"]["coordinates"]) for f in features}
        assert rings == {0: 1, 1: 3}


def test_memory_does_not_grow_with_the_number_of_polygons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.field.regions.STRIP_PIXELS", 32 * 32)
    rng = np.random.default_rng(0)
    peaks, counts = [], []
    for height in (64, 512):
        labels = rng.integers(0, 6, (height, 32), np.uint8)
        tracer = RegionTracer(32)
        tracemalloc.start()
        try:
            counts.append(sum(1 for _ in tracer.add(labels)) + sum(1 for _ in tracer.finish()))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert counts[1] > 7 * counts[0] > 7_000
    assert peaks[1] < 1.5 * peaks[0]


class _Interrupted(SilentProgress):
    def advance(self, done: int, total: int | None) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_and_an_error_leave_no_polygons(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.tif", patches((40, 40)))
    with opened_labels(path) as raster:
        with pytest.raises(KeyboardInterrupt):
            write_polygons(raster, NAMES, tmp_path / "labels.geojson", _Interrupted())
        with pytest.raises(OutputError, match="No such file"):
            write_polygons(raster, NAMES, tmp_path / "no/labels.geojson", SilentProgress())
    assert [file.name for file in tmp_path.iterdir()] == ["labels.tif"]


# --- smaller copies ---------------------------------------------------------------------------


def test_each_smaller_copy_has_the_class_of_most_pixels_and_all_stays_in_the_file(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    quarters = rng.integers(0, 3, (200, 150), np.uint8)
    labels = np.kron(quarters, np.ones((2, 2), np.uint8))
    odd = (slice(None, None, 2), slice(None, None, 2))
    labels[odd] = (labels[odd] + 1) % 3  # three of four pixels still say the same
    path = write_labels(tmp_path / "labels.tif", labels)
    finish_labels(path, {"ABOUT": "논 1"})
    assert [file.name for file in tmp_path.iterdir()] == ["labels.tif"]
    with rasterio.open(path) as file:
        assert file.overviews(1) == [2]
        assert file.tags()["ABOUT"] == "논 1"
        assert file.nodata == 255
        assert file.colormap(1)[2][:3] == PALETTE[2]
        assert file.crs.to_epsg() == 5186
        np.testing.assert_array_equal(file.read(1), labels)
    with rasterio.open(path, overview_level=0) as file:
        np.testing.assert_array_equal(file.read(1), quarters)
        assert file.profile["compress"] == "deflate"


def test_a_raster_that_fits_on_a_screen_gets_no_smaller_copies(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.tif", patches((256, 40)), None, None)
    finish_labels(path, {})
    with opened_labels(path) as raster:
        assert raster.dataset.overviews(1) == []
    assert pyramid_factors(256, 256) == []
    assert pyramid_factors(257, 1) == [2]
    assert pyramid_factors(20_000, 20_000) == [2, 4, 8, 16, 32, 64, 128]


def test_unnamed_labels_are_grey_and_nodata_is_transparent() -> None:
    colours = colormap_from_palette(PALETTE)
    assert len(colours) == 256
    assert colours[1] == (8, 39, 245, 255)
    assert colours[3] == colours[254] == (128, 128, 128, 255)
    assert colours[255] == (0, 0, 0, 0)


# --- overview ---------------------------------------------------------------------------------


def overview(tmp_path: Path, hw: tuple[int, int], **options: Any) -> tuple[Any, frozenset[str]]:
    labels = np.zeros(hw, np.uint8)
    labels[:, hw[1] // 2 :] = 2
    labels[: hw[0] // 4] = 255
    path = write_labels(tmp_path / "labels.tif", labels)
    image = np.full((*hw, options.pop("channels", 3)), 100, np.uint8)
    missing = write_overview(
        "논.tif", image, labels, areas_of(path), PALETTE, tmp_path / "labels.png", **options
    )
    with Image.open(tmp_path / "labels.png") as picture:
        return np.array(picture), missing


def test_the_overview_shows_image_and_labels_beside_each_other_with_a_legend(
    tmp_path: Path,
) -> None:
    sheet, _ = overview(tmp_path, (400, 300), alpha=0.5)
    colours = {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
    assert sheet.shape[1] == 2 * 300 + 3 * 16
    tint = tuple(round(0.5 * 100 + 0.5 * value) for value in PALETTE[2])
    assert {(100, 100, 100), (50, 50, 50), tint, PALETTE[0], PALETTE[2]} <= colours
    assert PALETTE[1] not in colours  # the legend is of what occurs
    left, right = (sheet[:, x : x + 300] for x in (16, 16 + 300 + 16))
    assert (left == 100).all(axis=2).sum() == 300 * 300  # nodata, a quarter, is white
    assert (right == tint).all(axis=2).sum() == 300 * 150


def test_a_wide_field_has_its_labels_below_it(tmp_path: Path) -> None:
    sheet, _ = overview(tmp_path, (200, 600), channels=1)
    assert sheet.shape[1] == 600 + 2 * 16
    assert sheet.shape[0] > 2 * 200


def test_korean_names_are_drawn_or_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "FONT_FILES", ())
    _, missing = overview(tmp_path, (100, 100))
    assert missing >= set("논배경도열병")
    assert not missing & set("no data")


def test_a_field_is_shown_at_most_1600_pixels_a_side() -> None:
    assert shown_hw(20_000, 10_000) == (1600, 800)
    assert shown_hw(300, 400) == (300, 400)
    assert shown_hw(1, 100_000) == (1, 1600)


def test_stretched_bands_are_shown_between_their_percentiles() -> None:
    image = np.zeros((10, 100, 2), np.uint8)
    image[..., 0] = np.arange(100, dtype=np.uint8)
    image[0, 0, 0] = 255  # a glint
    valid = np.ones((10, 100), bool)
    shown = stretched_for_eyes(image, valid)
    assert shown[5, 99, 0] == 255
    assert shown[5, 1, 0] == 0
    assert abs(int(shown[5, 50, 0]) - 128) < 4
    assert (shown[..., 1] == 0).all()
    assert stretched_for_eyes(image, ~valid) is image
