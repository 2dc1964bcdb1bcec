"""What is read: 8-bit and measured bands, nodata, masks, alpha, small rasters, damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from field_rasters import (
    PLACE,
    WINDOW,
    Weights,
    expected_sums,
    network_of,
    read_labels,
    rice,
    write_raster,
)
from rasterio.enums import ColorInterp, MaskFlags

from engines.bands.recipe import BandRecipe
from engines.errors import ConfigError, ImageError, InputError
from engines.field.run import FieldOptions, opened_field, segment_field
from engines.progress import SilentProgress

RECIPE = BandRecipe("GNE")


def labelled(tmp_path: Path, source: Any, predictor: Weights, **given: Any) -> np.ndarray:
    recipe = given.pop("recipe", None)
    out = tmp_path / "labels.tif"
    network = network_of(predictor, recipe=recipe)
    segment_field(network, source, out, FieldOptions(**given), SilentProgress())
    return read_labels(out)


def expected(predictor: Weights, image: np.ndarray) -> np.ndarray:
    """Labels of an image as large as a window or larger, no pixel near a tie in the tests."""
    sums = np.sort(expected_sums(predictor, image, WINDOW // 4), axis=0)
    assert (sums[-1] - sums[-2]).min() > 1e-3
    return expected_sums(predictor, image, WINDOW // 4).argmax(axis=0)


def stretched(bands: np.ndarray, nodata: float = -10000) -> np.ndarray:
    """The recipe of the data set for each band, written down with numpy alone."""
    planes = []
    for band in np.moveaxis(bands.astype(np.float32), 2, 0):
        smallest = band[(band != nodata) & ~np.isnan(band)].min()
        band = np.where((band < 0) | (band == nodata) | np.isnan(band), smallest, band)
        band = (band - band.min()) / (band.max() - band.min()) * np.float32(255)
        planes.append(np.rint(band).astype(np.uint8))
    return np.stack(planes[::-1], axis=2)  # three bands, read as RGB by who wrote them as BGR


def test_alpha_is_no_channel_and_pixels_without_it_are_nodata(tmp_path: Path) -> None:
    image, predictor = rice((70, 90)), Weights()
    alpha = np.full((70, 90, 1), 255, np.uint8)
    alpha[:10], alpha[40, 50], alpha[41, 51] = 0, 0, 1
    source = write_raster(tmp_path / "a.tif", np.dstack([image, alpha]), alpha="unassociated")
    with rasterio.open(source) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    labels = labelled(tmp_path, source, predictor)
    assert (labels == np.where(alpha[:, :, 0], expected(predictor, image), 255)).all()


@pytest.mark.parametrize("inside", [True, False])
def test_a_mask_in_the_file_or_beside_it_is_obeyed(tmp_path: Path, inside: bool) -> None:
    image, predictor = rice((70, 90)), Weights()
    source = write_raster(tmp_path / "m.tif", image)
    mask = np.ones((70, 90), np.bool_)
    mask[20:30, 5:40] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(source, "r+") as file:
        file.write_mask(mask)
        assert file.mask_flag_enums[0] == [MaskFlags.per_dataset]
    assert (tmp_path / "m.tif.msk").exists() != inside
    labels = labelled(tmp_path, source, predictor)
    assert (labels == np.where(mask, expected(predictor, image), 255)).all()


def test_a_pixel_is_nodata_where_all_bands_are(tmp_path: Path) -> None:
    image, predictor = rice((70, 90)), Weights()
    image[:5] = 0
    image[50, 50:60, 1] = 0
    source = write_raster(tmp_path / "n.tif", image, nodata=0)
    labels = labelled(tmp_path, source, predictor)
    empty = np.zeros((70, 90), np.bool_)
    empty[:5] = True
    assert (labels == np.where(empty, 255, expected(predictor, image))).all()


def test_a_given_nodata_replaces_that_of_the_file(tmp_path: Path) -> None:
    image, predictor = rice((70, 90)), Weights()
    image[:5] = 255
    source = write_raster(tmp_path / "n.tif", image, nodata=0)
    assert (labelled(tmp_path, source, predictor, nodata=255)[:5] == 255).all()
    assert (labelled(tmp_path, source, predictor)[:5] != 255).all()


def test_channels_are_found_by_their_colour(tmp_path: Path) -> None:
    image, predictor = rice((70, 90)), Weights()
    source = write_raster(tmp_path / "bgr.tif", image[:, :, ::-1])
    with rasterio.open(source, "r+") as file:
        file.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    assert (labelled(tmp_path, source, predictor) == expected(predictor, image)).all()


def test_named_bands_are_taken_in_their_order(tmp_path: Path) -> None:
    image, predictor = rice((70, 90), channels=5), Weights()
    source = write_raster(tmp_path / "five.tif", image, photometric="minisblack")
    labels = labelled(tmp_path, source, predictor, indexes=(5, 2, 1))
    assert (labels == expected(predictor, image[:, :, [4, 1, 0]])).all()


def test_more_bands_than_channels_are_not_guessed(tmp_path: Path) -> None:
    image = rice((70, 90), channels=5)
    source = write_raster(tmp_path / "five.tif", image, photometric="minisblack")
    with rasterio.open(source, "r+") as file:
        file.descriptions = ("blue", "green", "red", "nir", "논")
    with pytest.raises(ConfigError, match=r"1 \(blue\).*5 \(논\).*--rgb"):
        labelled(tmp_path, source, Weights())


@pytest.mark.parametrize("indexes", [(1, 2), (1, 2, 6), (0, 1, 2)])
def test_band_numbers_that_do_not_fit_are_refused(tmp_path: Path, indexes: Any) -> None:
    source = write_raster(tmp_path / "f.tif", rice((70, 90)))
    with pytest.raises(ConfigError, match="3 numbers from 1 to 3"):
        labelled(tmp_path, source, Weights(), indexes=indexes)


def test_fewer_bands_than_channels_are_refused(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "grey.tif", rice((70, 90), channels=1))
    with pytest.raises(ImageError, match="with 1 band; expected 3"):
        labelled(tmp_path, source, Weights())


@pytest.mark.parametrize("nodata", [-10000, -32767, None])
def test_measured_bands_are_stretched_by_the_limits_of_the_whole_raster(
    tmp_path: Path, nodata: float | None
) -> None:
    predictor = Weights()
    bands = rice((90, 120)).astype(np.float32) / 290 - 0.02
    bands[:12] = -10000 if nodata is None else nodata
    bands[30, 40:50, 0] = np.nan
    bands[60:, :, 2] *= 0.25  # other limits in another part
    source = write_raster(tmp_path / "bands.tif", bands, nodata=nodata)
    labels = labelled(tmp_path, source, predictor, recipe=RECIPE)
    image = stretched(np.where(bands < -1, -10000, bands))
    assert (labels[:12] == 255).all()
    assert (labels[12:] == expected(predictor, image)[12:]).all()


def test_uint16_bands_with_nodata_0_are_stretched(tmp_path: Path) -> None:
    predictor = Weights()
    bands = rice((90, 120)).astype(np.uint16) * 200
    bands[:12] = 0
    source = write_raster(tmp_path / "bands.tif", bands, nodata=0)
    labels = labelled(tmp_path, source, predictor, recipe=RECIPE)
    image = stretched(bands, nodata=0)
    assert (labels == np.where(bands.any(axis=2), expected(predictor, image), 255)).all()


def test_a_masked_part_does_not_change_the_limits(tmp_path: Path) -> None:
    predictor = Weights()
    bands = rice((90, 120)).astype(np.float32)
    bands[:12] = 9000
    source = write_raster(tmp_path / "bands.tif", bands)
    mask = np.ones((90, 120), np.bool_)
    mask[:12] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source, "r+") as file:
        file.write_mask(mask)
    labels = labelled(tmp_path, source, predictor, recipe=RECIPE)
    bands[:12] = -10000
    assert (labels == np.where(mask, expected(predictor, stretched(bands)), 255)).all()


def _single_bands(tmp_path: Path, bands: np.ndarray, **profiles: Any) -> dict[str, Path]:
    return {
        letter: write_raster(
            tmp_path / f"{letter}.tif", bands[:, :, [index]], **profiles.get(letter, {})
        )
        for index, letter in enumerate("GNE")
    }


def test_a_raster_for_each_band_is_the_same_as_one_with_all(tmp_path: Path) -> None:
    bands = rice((90, 120)).astype(np.float32)
    bands[:5] = -10000
    one = write_raster(tmp_path / "bands.tif", bands, nodata=-10000)
    several = _single_bands(tmp_path, bands, G={"nodata": -10000})
    together = labelled(tmp_path, one, Weights(), recipe=RECIPE)
    assert (labelled(tmp_path, several, Weights(), recipe=RECIPE) == together).all()
    assert (together[:5] == 255).all()


@pytest.mark.parametrize("several", [False, True])
def test_8_bit_bands_with_the_norm_uint8_are_taken_as_they_are(
    tmp_path: Path, several: bool
) -> None:
    image, predictor = rice((70, 90)), Weights()
    recipe = BandRecipe("GNE", norm="uint8")
    source: Any = write_raster(tmp_path / "bands.tif", image)
    if several:
        source = _single_bands(tmp_path, image)
    labels = labelled(tmp_path, source, predictor, recipe=recipe)
    assert (labels == expected(predictor, image[:, :, ::-1])).all()


def test_bands_of_different_size_are_refused(tmp_path: Path) -> None:
    bands = rice((90, 120)).astype(np.float32)
    files = _single_bands(tmp_path, bands)
    write_raster(files["E"], bands[:, :-1, [2]])
    with pytest.raises(ImageError, match=r"'.*G.tif' and '.*E.tif' of different size \(120x90"):
        labelled(tmp_path, files, Weights(), recipe=RECIPE)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"transform": rasterio.Affine(0.05, 0, 200_001, 0, -0.05, 550_000)}, "20.00 pixels"),
        ({"transform": rasterio.Affine(0.06, 0, 200_000, 0, -0.05, 550_000)}, "24.00 pixels"),
        ({"transform": rasterio.Affine(0, 0, 200_000, 0, 0, 550_000)}, "georeference"),
        ({"crs": "EPSG:32652"}, "coordinate systems"),
    ],
)
def test_bands_of_different_places_are_refused(
    tmp_path: Path, place: dict[str, Any], words: str
) -> None:
    files = _single_bands(tmp_path, rice((90, 120)).astype(np.float32), N=place)
    with pytest.raises(ImageError, match=words):
        labelled(tmp_path, files, Weights(), recipe=RECIPE)


def test_bands_whose_place_was_rounded_are_one_place(tmp_path: Path) -> None:
    rounded = {"transform": rasterio.Affine(0.05, 0, 200_000.0001, 0, -0.05, 550_000)}
    files = _single_bands(tmp_path, rice((90, 120)).astype(np.float32), N=rounded)
    assert labelled(tmp_path, files, Weights(), recipe=RECIPE).shape == (90, 120)


def test_numbers_of_bands_are_for_one_file(tmp_path: Path) -> None:
    files = _single_bands(tmp_path, rice((90, 120)).astype(np.float32))
    with pytest.raises(ConfigError, match="leave --rgb out"):
        labelled(tmp_path, files, Weights(), recipe=RECIPE, indexes=(1, 2, 3))


def test_a_raster_that_was_closed_is_not_read(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "field.tif", rice((70, 90)))
    with opened_field(source, network_of(Weights())) as raster:
        pass
    with pytest.raises(InputError, match="after close"):
        raster.preview((4, 6))


def test_a_missing_band_is_named(tmp_path: Path) -> None:
    files = _single_bands(tmp_path, rice((90, 120)).astype(np.float32))
    del files["N"]
    with pytest.raises(ImageError, match="add the file of band N"):
        labelled(tmp_path, files, Weights(), recipe=RECIPE)


def test_a_file_for_each_band_must_hold_one(tmp_path: Path) -> None:
    bands = rice((90, 120)).astype(np.float32)
    files = _single_bands(tmp_path, bands)
    write_raster(files["N"], bands)
    with pytest.raises(ImageError, match="a single band in each file"):
        labelled(tmp_path, files, Weights(), recipe=RECIPE)


def test_measured_bands_need_a_recipe(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "bands.tif", rice((90, 120)).astype(np.float32))
    with pytest.raises(ImageError, match=r"values of float32.*--bands"):
        labelled(tmp_path, source, Weights())
    with pytest.raises(ConfigError, match="--bands"):
        labelled(tmp_path, {"G": source}, Weights())


@pytest.mark.parametrize("hw", [(20, 90), (90, 20), (9, 11), (1, 100), (100, 1), (1, 1)])
def test_a_raster_smaller_than_a_window_is_mirrored_at_its_edges(
    tmp_path: Path, hw: tuple[int, int]
) -> None:
    image, predictor = rice(hw), Weights()
    labels = labelled(tmp_path, write_raster(tmp_path / "small.tif", image), predictor)
    missing = [max(0, WINDOW - side) for side in hw]
    larger = np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric")
    assert labels.shape == hw
    assert (labels == expected(predictor, larger)[: hw[0], : hw[1]]).all()


@pytest.mark.parametrize("recipe", [None, RECIPE])
def test_a_raster_without_any_data_is_refused(tmp_path: Path, recipe: BandRecipe | None) -> None:
    image = np.zeros((70, 90, 3), np.uint8 if recipe is None else np.float32)
    source = write_raster(tmp_path / "empty.tif", image, nodata=0)
    words = "without a single pixel of data" if recipe is None else "nodata everywhere"
    with pytest.raises(ImageError, match=words):
        labelled(tmp_path, source, Weights(), recipe=recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.tif"]


def test_a_constant_band_is_refused(tmp_path: Path) -> None:
    bands = rice((90, 120)).astype(np.float32)
    bands[:, :, 1] = 7
    source = write_raster(tmp_path / "bands.tif", bands)
    with pytest.raises(ImageError, match="band N, which is 7 everywhere"):
        labelled(tmp_path, source, Weights(), recipe=RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["bands.tif"]


def test_a_file_that_is_cut_short_is_refused_before_the_work_and_the_block_is_named(
    tmp_path: Path,
) -> None:
    source = write_raster(tmp_path / "field.tif", rice((256, 256)))
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    predictor = Weights()
    with pytest.raises(ImageError, match=r"cut short: block \d,\d of band 1 ends at byte \d+ of"):
        labelled(tmp_path, source, predictor)
    assert predictor.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["field.tif"]


@pytest.mark.parametrize(
    ("tag", "name"), [(33550, "GeoPixelScale"), (34735, "GeoKeyDirectory"), (324, "TileOffsets")]
)
def test_a_file_that_is_cut_short_in_its_tags_is_refused(
    tmp_path: Path, tag: int, name: str
) -> None:
    """As where the tags come last: what is behind the end would be left out unsaid."""
    source = write_raster(tmp_path / "field.tif", rice((256, 256)))
    data = bytearray(source.read_bytes())
    count = int.from_bytes(data[8:10], "little")
    entry = next(
        place
        for place in range(10, 10 + 12 * count, 12)
        if int.from_bytes(data[place : place + 2], "little") == tag
    )
    data[entry + 8 : entry + 12] = (len(data) - 4).to_bytes(4, "little")
    source.write_bytes(data)
    with pytest.raises(ImageError, match=rf"field\.tif'.*({name}|cannot be read)"):
        labelled(tmp_path, source, Weights())
    assert [path.name for path in tmp_path.iterdir()] == ["field.tif"]


@pytest.mark.parametrize("end", [".ovr", ".msk", ".ovr.msk"])
def test_smaller_copies_and_masks_name_no_other_files(tmp_path: Path, end: str) -> None:
    source = write_raster(tmp_path / "field.tif", rice((64, 64)))
    other = tmp_path / f"field.tif{end}"
    if end == ".ovr.msk":
        write_raster(tmp_path / "field.tif.ovr", rice((32, 32)))
    other.write_text("<VRTDataset/>")
    with pytest.raises(ImageError, match=rf"field\.tif\{end}', which is no TIFF"):
        labelled(tmp_path, source, Weights())
    other.unlink()
    labelled(tmp_path, source, Weights())
    with rasterio.open(source, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="/vsicurl/http://127.0.0.1:9/x.tif")
    with pytest.raises(ImageError, match=r"names another file for its smaller copies: '/vsicurl"):
        labelled(tmp_path, source, Weights())


def test_a_damaged_block_is_named_and_the_work_before_it_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_raster(tmp_path / "field.tif", rice((256, 256)))
    with rasterio.open(source) as file:
        start = int(file.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
    damaged = bytearray(source.read_bytes())
    damaged[start : start + 40] = bytes(40)
    source.write_bytes(damaged)
    with (
        caplog.at_level("INFO"),
        pytest.raises(ImageError, match=r"field\.tif.*rows \d+ to \d+.*X offset 1, Y offset 2"),
    ):
        labelled(tmp_path, source, Weights())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".labels.tif.work", "field.tif"]
    assert "the same command goes on from there" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"II*\0", b"II*\0\x08\0\0\0\xff\xff" + bytes(100), b"P6 1 1 255 abc"]
)
def test_a_file_that_is_no_geotiff_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.tif'.*whole GeoTIFF"):
        labelled(tmp_path, tmp_path / "x.tif", Weights())


def test_a_virtual_raster_that_names_other_files_is_refused(tmp_path: Path) -> None:
    other = write_raster(tmp_path / "other.tif", rice((70, 90)))
    (tmp_path / "field.tif").write_text(
        '<VRTDataset rasterXSize="90" rasterYSize="70"><VRTRasterBand dataType="Byte" band="1">'
        f'<SimpleSource><SourceFilename relativeToVRT="0">{other}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(ImageError, match="whole GeoTIFF"):
        labelled(tmp_path, tmp_path / "field.tif", Weights())


@pytest.mark.parametrize("name", ["", "none.tif", "/vsicurl/http://localhost/a.tif"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="a GeoTIFF file"):
        labelled(tmp_path, str(tmp_path / name) if not name.startswith("/") else name, Weights())


def test_complex_values_are_refused(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "c.tif", rice((70, 90)).astype(np.complex64))
    with pytest.raises(ImageError, match="values of complex64"):
        labelled(tmp_path, source, Weights())


def test_blocks_that_do_not_fit_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.field.geotiff.MAX_BLOCK_BYTES", 64 * 64 * 3 - 1)
    source = write_raster(tmp_path / "field.tif", rice((70, 90)))
    with pytest.raises(ImageError, match=r"64x64 pixels.*TILED=YES"):
        labelled(tmp_path, source, Weights())


def test_a_preview_shows_the_whole_raster_in_few_pixels(tmp_path: Path) -> None:
    image = np.zeros((80, 120, 3), np.uint8)
    image[:40, :60], image[:40, 60:], image[40:, :60] = (10, 20, 30), (40, 50, 60), (70, 80, 90)
    source = write_raster(tmp_path / "field.tif", image, nodata=0)
    with opened_field(source, network_of(Weights())) as raster:
        pixels, valid = raster.preview((4, 6))
    assert (pixels == image[10::20, 10::20]).all()
    assert (valid == (image[10::20, 10::20, 0] > 0)).all()


def test_the_labels_lie_where_the_raster_lies(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "논.tif", rice((70, 90)))
    labelled(tmp_path, source, Weights())
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert file.crs.to_epsg() == 5186
        assert file.transform == PLACE["transform"]
        assert (file.nodata, file.dtypes, file.compression.name) == (255, ("uint8",), "deflate")
        assert file.block_shapes == [(512, 512)]
        assert file.colormap(1)[3] == (225, 0, 26, 255)
        assert file.colormap(1)[255][3] == 0


def test_control_points_are_kept(tmp_path: Path) -> None:
    points = [
        rasterio.control.GroundControlPoint(row, column, 127 + column / 1e4, 37 - row / 1e4)
        for row in (0, 70)
        for column in (0, 90)
    ]
    source = write_raster(tmp_path / "f.tif", rice((70, 90)), gcps=points, transform=None)
    labelled(tmp_path, source, Weights())
    with rasterio.open(tmp_path / "labels.tif") as file:
        kept, crs = file.gcps
    assert [(p.row, p.col, p.x, p.y) for p in kept] == [(p.row, p.col, p.x, p.y) for p in points]
    assert crs.to_epsg() == 5186


def test_a_raster_without_georeference_gives_labels_without_one(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(rice((70, 90))).save(tmp_path / "photo.tif")
    labelled_here = tmp_path / "labels.tif"
    network = network_of(Weights())
    segment_field(network, tmp_path / "photo.tif", labelled_here, FieldOptions(), SilentProgress())
    with Image.open(labelled_here) as image:
        assert (image.size, image.mode) == ((90, 70), "P")
        assert 33922 not in image.tag_v2
