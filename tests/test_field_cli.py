"""`riceseg segment BUNDLE field.tif --out labels.tif`, from the command line to its files."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.features import geometry_mask, shapes

from engines.segmenter import Segmenter
from tests.band_bundles import band_bundle, reflectances, stretched
from tests.tiny_segformer import (
    CLASSES,
    PALETTE,
    error_of,
    export_tiny,
    photo,
    run_cli,
    write_checkpoint,
)

Picture = NDArray[np.uint8]

PLACE = Affine(0.05, 0, 200_000, 0, -0.05, 500_000)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes, windows of 64x64, labels and logits."""
    folder = tmp_path_factory.mktemp("lab")
    write_checkpoint(folder / "tiny.pth")
    result = export_tiny(folder, folder / "full", "--output", "both")
    assert result.exit_code == 0, result.stderr
    return folder / "full"


def write_field(path: Path, image: Picture, crs: int | None = 5186) -> Path:
    """An RGB GeoTIFF with pixels of 5 cm; 0 is nodata."""
    place = {} if crs is None else {"crs": CRS.from_epsg(crs)}
    height, width, channels = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=channels, dtype="uint8", height=height, width=width,
        transform=PLACE, nodata=0, tiled=True, blockxsize=64, blockysize=64, **place,
    ) as file:  # fmt: skip
        file.write(image.transpose(2, 0, 1))
    return path


@pytest.fixture
def field(tmp_path: Path) -> Path:
    """300 x 90 pixels, the upper left of them nodata."""
    image = np.maximum(photo((300, 90), 1), 1)
    image[:70, :40] = 0
    return write_field(tmp_path / "논.tif", image)


def labels_of(path: Path) -> Picture:
    with rasterio.open(path) as file:
        return file.read(1)  # type: ignore[no-any-return]


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_a_field_of_one_window_has_the_labels_that_the_segmenter_gives(
    bundle: Path, tmp_path: Path
) -> None:
    image = np.maximum(photo((64, 64), 3), 1)
    path = write_field(tmp_path / "field.tif", image)
    result = run_cli("segment", bundle, path, "--out", tmp_path / "labels.tif")
    assert result.exit_code == 0, result.stderr
    with Segmenter.open(bundle) as segmenter:
        expected = segmenter(image)
    np.testing.assert_array_equal(labels_of(tmp_path / "labels.tif"), expected)


def test_a_field_becomes_labels_areas_polygons_and_an_overview(
    bundle: Path, field: Path, tmp_path: Path
) -> None:
    out = tmp_path / "결과"
    out.mkdir()
    arguments = ["segment", bundle, field, "--out", out / "벼.tif", "--vectorize"]
    result = run_cli(*arguments)
    assert result.exit_code == 0, result.stderr
    assert names_in(out) == ["벼.csv", "벼.geojson", "벼.png", "벼.tif"]
    assert all(f"written: {out / name}" in result.stdout for name in names_in(out))
    with rasterio.open(out / "벼.tif") as file:
        labels = file.read(1)
        assert (file.crs.to_epsg(), file.transform, file.nodata) == (5186, PLACE, 255)
        assert file.overviews(1) == [2]
        assert [file.colormap(1)[index][:3] for index in range(6)] == list(PALETTE)
    assert labels.shape == (300, 90)
    assert ((labels == 255) == (np.arange(300) < 70)[:, None] * (np.arange(90) < 40)).all()

    with open(out / "벼.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [*CLASSES, "no data"]
    counts = {int(row["class"]): int(row["pixels"]) for row in rows}
    assert counts == {index: int((labels == index).sum()) for index in (*range(6), 255)}
    assert float(rows[-1]["hectares"]) == pytest.approx(70 * 40 * 0.05**2 / 10_000)
    assert all(name in result.stdout for name in CLASSES)

    features = json.loads((out / "벼.geojson").read_text(encoding="utf-8"))["features"]
    for index, name in enumerate(CLASSES):
        found = [f["properties"] for f in features if f["properties"]["class"] == index]
        assert sum(properties["pixels"] for properties in found) == counts[index]
        assert {properties["name"] for properties in found} <= {name}
    with Image.open(out / "벼.png") as picture:
        assert picture.width > 2 * 90
        colours = {rgb for _, rgb in picture.getcolors(2**24) or []}
    assert {PALETTE[index] for index in range(6) if counts[index]} <= colours


def test_the_same_command_again_makes_what_is_missing_and_nothing_else(
    bundle: Path, field: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["segment", bundle, field, "--out", out / "labels.tif"]
    assert run_cli(*arguments, "--no-overview").exit_code == 0
    assert names_in(out) == ["labels.csv", "labels.tif"]
    before = stamps(out)

    monkeypatch.setattr("exporter.field_segmentation.segment_field", None)  # would fail if called
    result = run_cli(*arguments, "--vectorize", "--min-area", "0.101")
    assert result.exit_code == 0, result.stderr
    assert f"already there: {out / 'labels.tif'}" in result.stdout
    assert f"written: {out / 'labels.geojson'}" in result.stdout
    assert "polygons below 0.101 m² left out" in result.stderr
    assert names_in(out) == ["labels.csv", "labels.geojson", "labels.png", "labels.tif"]
    assert {name: stamps(out)[name] for name in before} == before
    features = json.loads((out / "labels.geojson").read_text(encoding="utf-8"))["features"]
    labels = labels_of(out / "labels.tif")
    regions = [shape for shape, _ in shapes(labels, mask=labels != 255)]
    sizes = [geometry_mask([shape], labels.shape, Affine(1, 0, 0, 0, 1, 0)) for shape in regions]
    large = sum((~size).sum() > 40 for size in sizes)  # pixels of 25 cm²
    assert 0 < len(features) == large < len(regions)

    # With --overwrite the products are made anew; the labels would be the same.
    assert run_cli(*arguments, "--overwrite").exit_code == 0
    after = stamps(out)
    assert after["labels.tif"] == before["labels.tif"]
    assert after["labels.csv"] > before["labels.csv"]


def test_another_command_does_not_replace_the_files_of_an_earlier_one_unasked(
    bundle: Path, field: Path, tmp_path: Path
) -> None:
    arguments = ["segment", bundle, field, "--out", tmp_path / "labels.tif", "--no-overview"]
    assert run_cli(*arguments).exit_code == 0
    before = stamps(tmp_path)
    line = error_of(run_cli(*arguments, "--overlap", "0.5"))
    assert "labels.tif', which already exists" in line
    assert "--overwrite" in line
    assert stamps(tmp_path) == before
    assert run_cli(*arguments, "--overlap", "0.5", "--overwrite").exit_code == 0
    assert all(stamps(tmp_path)[name] > before[name] for name in ("labels.tif", "labels.csv"))
    line = error_of(run_cli(*arguments, "--overlap", "0.5", "--no-resume"))
    assert "which already exists" in line
    # A product that is older than the labels is not theirs.
    os.utime(tmp_path / "labels.csv", ns=(0, 0))
    line = error_of(run_cli(*arguments, "--overlap", "0.5"))
    assert "labels.csv', which already exists" in line


def test_ctrl_c_between_the_files_keeps_those_that_are_whole(
    bundle: Path, field: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["segment", bundle, field, "--out", out / "labels.tif", "--vectorize"]

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("engines.field.vectorize.RegionTracer.add", interrupted)
        result = run_cli(*arguments)
    assert result.exit_code == 130
    assert "the labels are whole" in result.stderr
    assert names_in(out) == ["labels.csv", "labels.tif"]
    before = stamps(out)
    monkeypatch.setattr("exporter.field_segmentation.segment_field", None)
    result = run_cli(*arguments)
    assert result.exit_code == 0, result.stderr
    assert names_in(out) == ["labels.csv", "labels.geojson", "labels.png", "labels.tif"]
    assert {name: stamps(out)[name] for name in before} == before


def test_a_field_without_a_place_has_pixels_and_no_polygons(bundle: Path, tmp_path: Path) -> None:
    path = write_field(tmp_path / "field.tif", np.maximum(photo((80, 70), 1), 1), crs=None)
    out = tmp_path / "out"
    arguments = ["segment", bundle, path, "--out", out / "labels.tif"]
    line = error_of(run_cli(*arguments, "--vectorize"))
    assert "--vectorize" in line
    assert "no coordinate system" in line
    assert not out.exists()  # told before anything is done
    result = run_cli(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "no coordinate system: areas are told in pixels" in result.stderr
    with open(out / "labels.csv", encoding="utf-8-sig", newline="") as file:
        assert {row["hectares"] for row in csv.DictReader(file)} == {""}


def test_bands_in_another_order_are_chosen_by_number(bundle: Path, tmp_path: Path) -> None:
    image = np.maximum(photo((70, 64), 5), 1)
    one = write_field(tmp_path / "rgb.tif", image)
    other = write_field(tmp_path / "bgr.tif", np.ascontiguousarray(image[:, :, ::-1]))
    plain = ["--no-overview", "--no-area"]
    assert run_cli("segment", bundle, one, "--out", tmp_path / "1.tif", *plain).exit_code == 0
    arguments = ["segment", bundle, other, "--out", tmp_path / "2.tif", "--rgb", "3,2,1"]
    assert run_cli(*arguments, *plain).exit_code == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "1.tif"), labels_of(tmp_path / "2.tif"))
    assert names_in(tmp_path) == ["1.tif", "2.tif", "bgr.tif", "rgb.tif"]


@pytest.mark.parametrize("in_one_file", [True, False])
def test_float_bands_become_labels_and_an_overview(in_one_file: bool, tmp_path: Path) -> None:
    """A field of 40x50 for windows of 16x16, stretched by the limits of all of it."""
    bands = reflectances((40, 50))  # G, N, E; the network sees E, N, G
    scene = tmp_path / "scene"
    scene.mkdir()
    files = {"field.tif": bands}
    if not in_one_file:
        names = [f"R20220726A25{letter}1036.tif" for letter in "GNE"]
        files = {name: bands[:, :, [index]] for index, name in enumerate(names)}
    for name, values in files.items():
        with rasterio.open(
            scene / name, "w", driver="GTiff", count=values.shape[2], dtype="float32",
            height=40, width=50, crs=CRS.from_epsg(5186), transform=PLACE, nodata=-10000,
        ) as file:  # fmt: skip
            file.write(values.transpose(2, 0, 1))
    (tmp_path / "bundle").mkdir()
    bundle = band_bundle(tmp_path / "bundle", (16, 16))
    source = scene / "field.tif" if in_one_file else scene
    result = run_cli("segment", bundle, source, "--out", tmp_path / "labels.tif", "--vectorize")
    assert result.exit_code == 0, result.stderr
    labels = labels_of(tmp_path / "labels.tif")
    nowhere = ((bands == -10000) | np.isnan(bands)).all(axis=2)
    assert nowhere.any()
    np.testing.assert_array_equal(labels == 255, nowhere)
    np.testing.assert_array_equal(labels[~nowhere], stretched(bands[:, :, 2])[~nowhere] // 64)
    with Image.open(tmp_path / "labels.png") as picture:
        sheet = np.array(picture)
    # Below the title and the margins: nodata is white, bands are shown between percentiles.
    shown = sheet[62:102, 16:66]
    assert (shown[nowhere] == 255).all()
    assert [(c.min(), c.max()) for c in shown[~nowhere].T] == [(0, 255)] * 3
    assert all(((c > 0) & (c < 255)).mean() > 0.9 for c in shown[~nowhere].T)
    assert names_in(tmp_path) == [
        "bundle", "labels.csv", "labels.geojson", "labels.png", "labels.tif", "scene",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--out", "masks", "--vectorize"], "--vectorize with --out"),
        (["--out", "masks", "--no-area", "--rgb", "1,2,3"], "--rgb, --area with --out"),
        (["--out", "x.tif", "--mode", "slide"], "--mode with --out"),
        (["--out", "x.tif", "--skip-bad"], "--skip-bad with --out"),
        (["--out", "x.tif", "--rgb", "0,1,2"], "--rgb '0,1,2'"),
        (["--out", "x.tif", "--rgb", "r,g,b"], "--rgb 'r,g,b'"),
        (["--out", "x.tif", "--rgb", "1,2,9"], "9"),
        (["--out", "x.tif", "--overlap", "0.9"], "--overlap '0.9'"),
        (["--out", "x.tif", "--nodata", "-5"], "--nodata -5 for bands of 8 bits"),
        (["--out", "x.tif", "--min-area", "2"], "--min-area without --vectorize"),
        (["--out", "x.tif", "--min-area", "nan"], "--min-area 'nan'"),
        (["--out", "논.tif"], "which is read as well"),
        (["--out", "file/x.tif"], "not a folder"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], expected: str, bundle: Path, field: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    out, place, *rest = options
    line = error_of(run_cli("segment", bundle, field, out, tmp_path / place, *rest))
    assert expected in line
    assert names_in(tmp_path) == ["file", "논.tif"]


def test_what_is_no_geotiff(bundle: Path, field: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.tif"
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(photo((20, 20), 1)).save(tmp_path / "photos" / name)
    whole = field.read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 2 // 3])
    for name, expected in {
        "text.tif": "cannot be read",
        "cut.tif": "cut.tif",
        "photos": "with 2 images",
        "photos/a.png": "cannot be read",
        "none.tif": "none.tif",
    }.items():
        assert expected in error_of(run_cli("segment", bundle, tmp_path / name, "--out", out))
    assert names_in(tmp_path) == ["cut.tif", "photos", "text.tif", "논.tif"]


def test_without_rasterio_the_command_that_installs_it_is_told(
    bundle: Path, field: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    line = error_of(run_cli("segment", bundle, field, "--out", tmp_path / "labels.tif"))
    assert "pip install 'riceseg[scenes]'" in line
