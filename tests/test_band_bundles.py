"""What a bundle says about bands: the record, the export that writes it, and who reads it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import exporter.band_graphs
from engines.bands.recipe import BandRecipe
from engines.bundle import BandsInfo, bundle_from_folder, write_bundle_json
from engines.bundle_bands import bands_text
from engines.errors import BundleError, ConfigError
from engines.reports.report import checked_report
from engines.reports.text import text_of_report
from engines.segmenter import Segmenter
from exporter.fuse_bands import fused_with_bands
from exporter.request import ExportRequest
from tests.band_bundles import GNE, reflectances, stretched
from tests.qat_models import write_planes_onnx
from tests.tiny_models import bundle_document, tiny_bundle, write_document
from tests.tiny_segformer import error_of, export_tiny, run_cli, write_checkpoint, write_lab

HW = (64, 64)
WORDS = "green, near infrared, red edge (GNE, chw_minmax, nodata -10000)"


def written_by_hand(bands: Any, folder: Path, channels: int = 3) -> Path:
    return write_document({**bundle_document(channels=channels), "bands": bands}, folder)


# --- the record -----------------------------------------------------------------------------------


def test_a_bundle_of_an_older_export_has_no_bands(tmp_path: Path) -> None:
    assert "bands" not in bundle_document()
    assert bundle_from_folder(tiny_bundle(tmp_path)).bands is None
    assert bundle_from_folder(written_by_hand(None, tmp_path / "null")).bands is None


def test_a_record_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    record = {"letters": "REN", "norm": "uint8", "nodata": 0.5, "fused_hw": [512, 640]}
    bundle = bundle_from_folder(written_by_hand(record, tmp_path))
    assert bundle.bands == BandsInfo("REN", "uint8", 0.5, (512, 640))
    assert bundle.bands.recipe == BandRecipe("REN", "uint8", 0.5)
    write_bundle_json(bundle, tmp_path)
    written = json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))
    assert list(written)[-1] == "bands"
    assert written["bands"] == record
    write_bundle_json(replace(bundle, bands=None), tmp_path)
    assert json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))["bands"] is None


def test_the_lowest_float_is_a_nodata_that_survives(tmp_path: Path) -> None:
    lowest = float(np.finfo(np.float32).min)  # what GDAL writes
    bundle = bundle_from_folder(written_by_hand({**GNE, "nodata": lowest}, tmp_path))
    write_bundle_json(bundle, tmp_path)
    bands = bundle_from_folder(tmp_path).bands
    assert bands is not None
    assert np.float32(bands.nodata) == np.finfo(np.float32).min


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], r"\[\] \(list\) as bands .*an object"),
        ("GNE", "'GNE' .*as bands .*an object"),
        ({key: GNE[key] for key in ("letters", "norm", "nodata")}, "without 'bands.fused_hw'"),
        ({key: GNE[key] for key in ("letters", "norm", "fused_hw")}, "as bands .*nodata"),
        ({**GNE, "letters": "GNX"}, "as bands .*expected one to five letters of R, G, B, N, E"),
        ({**GNE, "letters": "GGE"}, "as bands .*none of them twice"),
        ({**GNE, "letters": ["G", "N", "E"]}, "as bands .*letters"),
        ({**GNE, "letters": "GN"}, "'GN' .*as bands.letters .*as many bands .* channels, 3"),
        ({**GNE, "norm": "zscore"}, "as bands .*expected chw_minmax or uint8"),
        ({**GNE, "norm": []}, "as bands .*expected chw_minmax or uint8"),
        ({**GNE, "nodata": "-10000"}, "as bands .*a finite number"),
        ({**GNE, "nodata": True}, "as bands .*a finite number"),
        ({**GNE, "nodata": 1e300}, "as bands .*a finite number"),
        ({**GNE, "fused_hw": [512]}, "as bands.fused_hw .*a list of 2"),
        ({**GNE, "fused_hw": [0, 512]}, r"as bands.fused_hw\[0\] .*1 to 16384"),
        ({**GNE, "fused_hw": [1e9, 512]}, r"as bands.fused_hw\[0\]"),
    ],
)
def test_a_record_of_another_form_is_refused(record: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        bundle_from_folder(written_by_hand(record, tmp_path))


def test_bands_are_said_in_words() -> None:
    assert bands_text(None) is None
    assert bands_text(BandsInfo("GNE", "chw_minmax", -10000.0)) == WORDS
    assert bands_text(BandsInfo("BR", "uint8", 0.5, (512, 640))) == (
        "blue, red (BR, uint8, nodata 0.5); graphs that take 512x640 float bands"
    )


# --- the export -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def bundle(lab: Path) -> Path:
    """Every precision, each with a graph that composes."""
    options = ["--bands", "gne", "--fuse-bands", "--int8", "--fp16", "--calib", lab / "data"]
    result = export_tiny(lab, lab / "벼", *options)
    assert result.exit_code == 0, result.stderr
    return lab / "벼"


def test_the_export_records_what_it_was_told(bundle: Path) -> None:
    found = bundle_from_folder(bundle)
    assert found.bands == BandsInfo("GNE", "chw_minmax", -10000.0, HW)
    assert {key: info.file for key, info in found.files.items() if key.endswith("_bands")} == {
        "fp32_bands": "model.bands.onnx",
        "fp16_bands": "model.fp16.bands.onnx",
        "int8_bands": "model.int8.bands.onnx",
        "int8_fp16_bands": "model.int8.fp16.bands.onnx",
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_graphs_that_compose_give_the_labels_of_those_that_do_not(
    bundle: Path, precision: str
) -> None:
    scenes = [reflectances(HW, seed) for seed in range(3)]
    with (
        Segmenter.open(bundle, precision=precision) as plain,
        Segmenter.open(bundle, precision=precision, fused=True) as fused,
    ):
        for scene in scenes:
            image = np.stack([stretched(scene[:, :, band]) for band in (2, 1, 0)], axis=2)
            labels = plain(image)
            assert len(np.unique(labels)) > 1
            np.testing.assert_array_equal(plain(scene), labels)
            np.testing.assert_array_equal(fused(scene), labels)
        for streamed, scene in zip(fused.stream(scenes), scenes, strict=True):
            np.testing.assert_array_equal(streamed, plain(scene))


def test_the_report_and_inspect_name_the_bands(bundle: Path, lab: Path) -> None:
    words = f"{WORDS}; graphs that take 64x64 float bands"
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    assert report["bands"] == {**GNE, "fused_hw": [64, 64], "text": words}
    assert words in (bundle / "report.html").read_text(encoding="utf-8")
    assert f"bands: {words}" in text_of_report(report, shown=str)
    shown = run_cli("inspect", bundle)
    assert words in shown.stdout
    assert json.loads(run_cli("inspect", bundle, "--json").stdout)["bands"] == words
    result = run_cli("evaluate", bundle, "--data", lab / "data", "--out", lab / "evaluated")
    assert result.exit_code == 0, result.stderr
    evaluated = json.loads((lab / "evaluated/report.json").read_text(encoding="utf-8"))
    assert evaluated["bands"] == report["bands"]
    forms = [row["form"] for row in evaluated["rows"]]
    assert forms == ["ONNX FP32", "ONNX FP16", "ONNX INT8", "ONNX INT8+FP16"]


def test_a_report_without_bands_stays_as_it_was(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    del report["bands"]
    assert checked_report(report)["bands"] is None
    assert "bands" not in text_of_report(report, shown=str)
    with pytest.raises(BundleError, match=r"as bands\.letters of a report"):
        checked_report({**report, "bands": {"letters": 3}})


def test_scenes_of_another_size_are_composed_and_resized_in_the_graph(
    lab: Path, tmp_path: Path
) -> None:
    options = ["--bands", "NRG", "--norm", "uint8", "--band-nodata", "-1", "--fuse-bands"]
    result = export_tiny(lab, tmp_path / "b", *options, "--scene-size", "40x100")
    assert result.exit_code == 0, result.stderr
    found = bundle_from_folder(tmp_path / "b")
    assert found.bands == BandsInfo("NRG", "uint8", -1.0, (40, 100))
    smooth = np.add.outer(np.arange(40.0), np.arange(100.0)) * 1.8
    scene = np.stack([smooth, 255 - smooth, smooth / 2], axis=2).astype(np.float32)
    with Segmenter.open(tmp_path / "b") as plain:
        wanted = plain(scene)
    with Segmenter.open(tmp_path / "b", fused=True) as fused:
        labels = fused(scene)
    assert labels.shape == (40, 100)
    assert np.mean(labels == wanted) > 0.97  # one grey level apart here and there


def test_a_network_of_four_channels_takes_four_letters(lab: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny.pth", in_channels=4, config=None)
    means = ["--mean", "100,100,100,100", "--std", "50,50,50,50"]
    result = export_tiny(tmp_path, tmp_path / "b", *means, "--bands", "RGBN")
    assert result.exit_code == 0, result.stderr
    found = bundle_from_folder(tmp_path / "b")
    assert found.bands == BandsInfo("RGBN", "chw_minmax", -10000.0)
    assert [key for key in found.files if "bands" in key] == []
    line = error_of(export_tiny(tmp_path, tmp_path / "c", *means, "--bands", "GNE"))
    assert "--bands GNE for a network of 4 input channels; expected 4 letters" in line
    assert not (tmp_path / "c").exists()


def test_a_quantized_onnx_file_takes_bands_too(tmp_path: Path) -> None:
    write_planes_onnx(tmp_path / "planes.onnx")
    given = ["--checkpoint", tmp_path / "planes.onnx", "--out", tmp_path / "b", "--fuse-bands"]
    line = error_of(run_cli("export", *given, "--bands", "RGBN"))
    assert "--bands RGBN for a network of 3 input channels" in line
    result = run_cli("export", *given, "--bands", "GNE")
    assert result.exit_code == 0, result.stderr
    found = bundle_from_folder(tmp_path / "b")
    assert found.bands == BandsInfo("GNE", "chw_minmax", -10000.0, (32, 32))
    assert {"fp32_bands", "int8_bands"} < set(found.files)
    report = json.loads((tmp_path / "b/report.json").read_text(encoding="utf-8"))
    assert report["bands"]["letters"] == "GNE"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bands", "GNX"], "bands 'GNX'; expected one to five letters"),
        (["--bands", "GGE"], "bands 'GGE'; expected .*none of them twice"),
        (["--bands", ""], "bands ''"),
        (["--bands", "GNE", "--norm", "zscore"], "'zscore' is not one of"),
        (["--bands", "GNE", "--band-nodata", "nan"], "--band-nodata 'nan'"),
        (["--bands", "GNE", "--band-nodata", "1e39"], "--band-nodata '1e39'"),
        (["--norm", "uint8"], "--norm without --bands"),
        (["--band-nodata", "0"], "--band-nodata without --bands"),
        (["--fuse-bands"], "--fuse-bands without --bands"),
        (["--bands", "GNE", "--scene-size", "64x64"], "--scene-size without --fuse-bands"),
        (["--bands", "GNE", "--fuse-bands", "--scene-size", "0x9"], "--scene-size 0x9; expected"),
        (["--bands", "GNE", "--fuse-bands", "--scene-size", "1x64"], "width from 8 to"),
        (["--bands", "GNE", "--band-nodata", "nan"], "for example, --band-nodata -10000"),
        (["--percentile", "nan"], r"for example, --percentile \d+"),
        (["--std", "x"], r"for example, --std \d+"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(
    options: list[str], message: str, tmp_path: Path
) -> None:
    result = export_tiny(tmp_path, tmp_path / "out", *options)  # no checkpoint is there
    assert re.search(message, error_of(result))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_composes_is_not_scored_on_composites(
    bundle: Path, lab: Path, tmp_path: Path
) -> None:
    arguments = ["--data", lab / "data", "--out", tmp_path / "report"]
    message = error_of(run_cli("evaluate", bundle / "model.bands.onnx", *arguments))
    assert "model.bands.onnx, which composes float bands by itself; expected" in message
    assert list(tmp_path.iterdir()) == []


def test_a_request_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="--fuse-bands without --bands"):
        ExportRequest(Path("a"), Path("b"), fuse_bands=True)


def test_a_graph_that_composes_wrongly_leaves_no_bundle(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(model: onnx.ModelProto, recipe: BandRecipe, **size: Any) -> onnx.ModelProto:
        return fused_with_bands(model, replace(recipe, nodata=5.0), **size)

    monkeypatch.setattr(exporter.band_graphs, "fused_with_bands", forgetful)
    result = export_tiny(lab, tmp_path / "out", "--bands", "GNE", "--fuse-bands")
    line = error_of(result, code=1)
    assert "model.bands.onnx does not reproduce the graph on composed bands" in line
    assert "grey levels apart (limit 0)" in line
    assert list(tmp_path.iterdir()) == []


def test_the_pattern_has_what_real_scenes_have() -> None:
    recipe = BandRecipe("GN", nodata=7.0)
    scenes = exporter.band_graphs.pattern_scenes(2, (40, 50), recipe)
    assert (scenes.shape, scenes.dtype) == ((2, 40, 50, 2), np.float32)
    assert np.isnan(scenes).any()
    assert (scenes == 7.0).any()
    assert (scenes < 0).any()
    ready = exporter.band_graphs.pattern_scenes(1, (40, 50), BandRecipe("GN", "uint8"))
    valid = ready[np.isfinite(ready) & (ready != -10000)]
    assert 0 <= valid.min() < 100 < 150 < valid.max() <= 255
