"""`riceseg sensitivity`: what is measured, where it goes, and what it leaves alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporter.sensitivity
from calibration.group_errors import EVERYTHING, policies_by_group
from calibration.onnx_file import model_from_onnx_file
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from engines.bundle import bundle_from_folder
from engines.dataset import pairs_from_folder
from engines.errors import BundleError, ConfigError, DatasetError
from engines.evaluation.evaluate import evaluate_predictors
from engines.images import image_from_file
from engines.onnx_predictor import OnnxPredictor
from engines.progress import SilentProgress
from engines.resize import network_image_from_image
from exporter.groups import groups_of
from exporter.network_images import evenly
from exporter.report import Strip, write_report
from exporter.request import DataOptions
from exporter.sensitivity import sensitivity_of_bundle
from exporter.sensitivity_report import write_into_bundle
from tests.test_groups import exported
from tests.test_report import measured_row, report, text_of
from tests.tiny_models import bundle_document, file_entry, write_document
from tests.tiny_segformer import CLASSES, PALETTE, error_of, run_cli, tiny_net, write_dataset

GROUPS = (
    *("patch_embed", "q", "k", "v", "attention_products", "projection", "spatial_reduction"),
    *("ffn_fc1", "ffn_depthwise", "ffn_fc2", "residual", "head_stages", "head_fusion"),
    *("head_sums", "classifier"),
)
FIELDS = {
    *("name", "title", "nodes", "macs_percent", "miou_drop", "sqnr_db", "agreement"),
    *("weight_max", "weight_outlier_percent", "activation_low", "activation_high", "clip"),
    "outlier_percent",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain/, a bundle with a report and pictures on its page, and data/."""
    lab = tmp_path_factory.mktemp("lab")
    write_dataset(lab / "data")
    folder = lab / "plain"
    folder.mkdir()
    exported(tiny_net(), folder)
    (folder / "traced.onnx").unlink()
    document = bundle_document(hw=(64, 64), classes=CLASSES)
    document["files"] = {"fp32": file_entry(folder / "model.onnx", folder)}
    document["model"]["architecture"] = "segformer"
    document.update(name="벼 이삭", palette=[list(rgb) for rgb in PALETTE], report="report.json")
    document["input"].update(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    write_document(document, folder)
    rows = [measured_row("PyTorch FP32", 70.0, 40.0, 15.2)]
    picture = np.zeros((8, 8, 3), np.uint8)
    strips = [Strip("a.jpg", 99.0, [("Image", picture)])]
    write_report(report(*rows, name="벼 이삭", warnings=["so so"]), folder, strips=strips)
    return lab


@pytest.fixture(scope="module")
def done(lab: Path) -> Path:
    """A copy of plain/ that went through the command."""
    folder = shutil.copytree(lab / "plain", lab / "done")
    result = run_cli(
        "sensitivity", folder, "--calib", lab / "data", "--val", lab / "data", "--images", 3
    )
    assert result.exit_code == 0, result.stderr
    (lab / "stdout").write_text(result.stdout, encoding="utf-8")
    (lab / "stderr").write_text(result.stderr, encoding="utf-8")
    return folder


@pytest.fixture
def bundle(lab: Path, tmp_path: Path) -> Path:
    return shutil.copytree(lab / "plain", tmp_path / "bundle")


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def loaded(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def page(folder: Path, name: str = "report.html") -> str:
    return (folder / name).read_text(encoding="utf-8")


# --- what is measured


def test_every_group_is_measured_and_written_with_what_it_was_measured_on(
    lab: Path, done: Path
) -> None:
    found = loaded(done / "sensitivity.json")
    assert (found["format"], found["format_version"]) == ("riceseg-sensitivity", 1)
    assert found["name"] == "벼 이삭"
    assert (found["images"], found["error_images"], found["val_images"]) == (3, 3, 3)
    assert found["sha256"] == hashes(done)["model.onnx"]
    assert found["data"]["sha256"] is not None
    assert [group["name"] for group in found["groups"]] == list(GROUPS)
    for group in found["groups"]:
        assert set(group) == FIELDS
        assert group["sqnr_db"] > 0
        assert 0 < group["agreement"] <= 100
        assert group["activation_low"] <= group["activation_high"]
        assert group["clip"] > 0
        assert 0 <= group["outlier_percent"] < 5
        assert abs(group["miou_drop"]) < 20
    assert sum(group["macs_percent"] for group in found["groups"]) == pytest.approx(100)
    by_name = {group["name"]: group for group in found["groups"]}
    assert by_name["attention_products"]["nodes"] == by_name["residual"]["nodes"] == 8
    assert by_name["residual"]["macs_percent"] == 0
    assert by_name["residual"]["weight_max"] is None


def test_the_miou_cost_is_that_of_the_written_graph_on_the_same_images(
    lab: Path, done: Path, tmp_path: Path
) -> None:
    found = loaded(done / "sensitivity.json")
    bundle, path = bundle_from_folder(done), done / "model.onnx"
    files = sorted((lab / "data" / "images" / "calibration").iterdir())
    images = [
        network_image_from_image(
            image_from_file(file, channels=3), (64, 64), bundle.input.rule, bundle.input.pad_value
        )
        for file in files
    ]
    ranges = ranges_from_images(path, images, policy=EVERYTHING)
    policies = policies_by_group(model_from_onnx_file(path), groups_of("segformer"))
    pairs = pairs_from_folder(lab / "data")

    def miou(graph: Path) -> float:
        # the first, second and third of four are those that --images 3 spreads evenly
        chosen = [pairs[0], pairs[1], pairs[2]]
        with OnnxPredictor(graph) as predictor:
            evaluation = evaluate_predictors(
                [predictor], chosen, input=bundle.input, num_outputs=6, num_classes=6
            )
        return evaluation.rows[0].scores.miou

    assert found["reference_miou"] == miou(path)
    by_name = {group["name"]: group for group in found["groups"]}
    for name in ("residual", "ffn_fc2"):
        int8_onnx_from_ranges(path, ranges, tmp_path / name, policy=policies[name])
        assert by_name[name]["miou_drop"] == pytest.approx(miou(path) - miou(tmp_path / name))


def test_the_table_has_a_line_for_each_group_and_fits_80_columns(lab: Path, done: Path) -> None:
    lines = (lab / "stdout").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == list(GROUPS)
    assert " ".join(" ".join(lines[:2]).split()) == (
        "MACs mIoU SQNR equal weights range outliers group % lost dB % max activations kept %"
    )
    assert max(map(len, lines[:-1])) <= 80
    group = loaded(done / "sensitivity.json")["groups"][0]
    cells = lines[2].split()
    assert cells[1] == f"{group['macs_percent']:.1f}"
    assert cells[3] == f"{group['sqnr_db']:.1f}"
    assert lines[-1] == f"report: {done / 'report.html'}"


def test_the_log_tells_every_stage_and_how_far_it_is(lab: Path, done: Path) -> None:
    log = (lab / "stderr").read_text(encoding="utf-8")
    stages = ("load", "score FP32", "calibrate (mse)", "compare each group with FP32")
    for stage in (*stages, "score each group"):
        assert f"{stage}: done" in log
    assert "/45)" in log  # 15 groups on 3 images


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [
        (10, 4, (0, 2, 5, 7)),
        (3, 8, (0, 1, 2)),
        (4, 4, (0, 1, 2, 3)),
        (100, 1, (0,)),
        (0, 5, ()),
        (2, None, (0, 1)),
    ],
)
def test_images_are_taken_evenly(count: int, most: int | None, expected: tuple[int, ...]) -> None:
    assert evenly(range(count), most) == list(expected)


# --- where it goes


def test_the_report_gets_the_section_and_keeps_everything_else(lab: Path, done: Path) -> None:
    before, after = loaded(lab / "plain" / "report.json"), loaded(done / "report.json")
    section = after.pop("sensitivity")
    assert before.pop("sensitivity") is None
    assert after == before
    record = loaded(done / "sensitivity.json")
    assert section == {key: record[key] for key in section}
    start, end = "<!-- sensitivity -->", "<!-- end of sensitivity -->"
    parts = [page(folder).split(start) for folder in (lab / "plain", done)]
    assert parts[0][0] == parts[1][0]
    assert parts[0][1].split(end)[1] == parts[1][1].split(end)[1]
    assert "data:image/" in page(done)  # the pictures, which no report.json holds
    text = text_of(page(done))
    assert "What INT8 costs in each part of the network" in text
    assert "mIoU on 3 validation images" in text
    untouched = {"bundle.json", "model.onnx"}
    assert {hashes(lab / "plain")[name] for name in untouched} == {
        hashes(done)[name] for name in untouched
    }
    bundle_from_folder(done)


def test_a_second_run_replaces_the_first(done: Path, tmp_path: Path) -> None:
    again = shutil.copytree(done, tmp_path / "again")
    document = loaded(again / "sensitivity.json")
    document["groups"][0]["title"] = "패치"
    assert write_into_bundle(document, again) == again / "report.html"
    assert loaded(again / "report.json")["sensitivity"]["groups"][0]["title"] == "패치"
    assert page(again) == page(done).replace("Patch embeddings", "패치")
    assert page(again) != page(done)


def test_without_val_only_miou_is_missing_and_the_bundle_can_stay_as_it_is(
    lab: Path, bundle: Path, tmp_path: Path
) -> None:
    before = hashes(bundle)
    files = tmp_path / "new" / "비용.json", tmp_path / "new" / "비용.html"
    result = run_cli(
        "sensitivity", bundle, "--calib", lab / "data", "--images", 1,
        "--json", files[0], "--out", files[1],
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert hashes(bundle) == before
    found = loaded(files[0])
    assert (found["images"], found["val_images"], found["reference_miou"]) == (1, 0, None)
    assert [group["name"] for group in found["groups"]] == list(GROUPS)
    assert {group["miou_drop"] for group in found["groups"]} == {None}
    assert all(group["sqnr_db"] is not None for group in found["groups"])
    text = text_of(files[1].read_text(encoding="utf-8"))
    assert "벼 이삭" in text
    assert "Residual additions" in text
    assert "mIoU was not measured" in text
    assert result.stdout.count("n/m") == len(GROUPS) + 1
    assert "n/m: not measured (no --val)" in result.stdout
    assert result.stdout.splitlines()[-1] == f"report: {files[1]}"


@pytest.mark.parametrize(
    ("json_name", "page_name", "message"),
    [("a", "a", "for --json and for --out"), ("bundle.json", "b", "which lies in the bundle")],
)
def test_files_elsewhere_are_two_and_not_in_the_bundle(
    json_name: str, page_name: str, message: str, lab: Path, bundle: Path
) -> None:
    before = hashes(bundle)
    json_path = (bundle if json_name == "bundle.json" else lab) / json_name
    options = ("--json", json_path, "--out", lab / page_name)
    error = error_of(run_cli("sensitivity", bundle, "--calib", lab / "data", *options))
    assert message in error
    assert hashes(bundle) == before


@pytest.mark.parametrize(
    "html",
    [
        b"<p>mine</p>",
        b"\xff\xfe",
        b"<!-- end of sensitivity --><!-- sensitivity -->",
        b"<!-- sensitivity --><!-- end of sensitivity -->" * 2,
        b"<!-- sensitivity --><!-- end of sensitivity -->" + b" " * 20_000_000,
    ],
)
def test_a_page_of_another_make_is_left_alone(done: Path, bundle: Path, html: bytes) -> None:
    (bundle / "report.html").write_bytes(html)
    own = write_into_bundle(loaded(done / "sensitivity.json"), bundle)
    assert own == bundle / "sensitivity.html"
    assert "Residual additions" in text_of(own.read_text(encoding="utf-8"))
    assert (bundle / "report.html").read_bytes() == html
    assert loaded(bundle / "report.json")["sensitivity"] is not None


def test_a_page_that_leads_out_of_the_bundle_is_neither_read_nor_changed(
    done: Path, bundle: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("secret <!-- sensitivity --><!-- end of sensitivity -->", encoding="utf-8")
    (bundle / "report.html").unlink()
    (bundle / "report.html").symlink_to(secret)
    (bundle / "sensitivity.json").symlink_to(secret)
    own = write_into_bundle(loaded(done / "sensitivity.json"), bundle)
    assert own == bundle / "sensitivity.html"
    assert "secret" not in own.read_text(encoding="utf-8")
    assert secret.read_text(encoding="utf-8").startswith("secret")
    assert not (bundle / "sensitivity.json").is_symlink()


def test_a_bundle_without_a_report_gets_a_page_of_its_own(done: Path, bundle: Path) -> None:
    document = loaded(bundle / "bundle.json")
    write_document({**document, "report": None}, bundle)
    (bundle / "report.json").unlink()
    (bundle / "report.html").unlink()
    write_into_bundle(loaded(done / "sensitivity.json"), bundle)
    names = {"bundle.json", "model.onnx", "sensitivity.json", "sensitivity.html"}
    assert set(hashes(bundle)) == names


# --- what stops it


class Interrupts(SilentProgress):
    """Ctrl-C at the second image of the stage that scores the groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[str] = []

    def stage(self, title: str) -> contextlib.AbstractContextManager[None]:
        self.stages.append(title)
        return super().stage(title)

    def advance(self, done: int, total: int | None) -> None:
        if total == 15 and done == 2 and self.stages[-1] == "score each group":
            raise KeyboardInterrupt


def test_nothing_is_left_behind_when_it_is_interrupted(
    lab: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = hashes(bundle)
    data = DataOptions(calib=lab / "data", val=lab / "data")
    with pytest.raises(KeyboardInterrupt):
        sensitivity_of_bundle(bundle, data, most_images=1, progress=Interrupts())
    assert list(scratch.iterdir()) == []
    assert hashes(bundle) == before


def measure(bundle: Path, data: DataOptions) -> None:
    sensitivity_of_bundle(bundle, data, most_images=1, progress=SilentProgress())


def test_calibration_images_that_are_validation_images_are_refused(lab: Path, bundle: Path) -> None:
    data = DataOptions(calib=lab / "data" / "images" / "validation", val=lab / "data")
    with pytest.raises(DatasetError, match="4 calibration images that are validation images too"):
        measure(bundle, data)


def test_a_graph_that_is_not_the_recorded_one_is_refused(lab: Path, bundle: Path) -> None:
    graph = bundle / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[-100] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match=r"'model\.onnx' with SHA-256"):
        measure(bundle, DataOptions(calib=lab / "data"))


def test_a_bundle_without_fp32_is_refused(lab: Path, bundle: Path) -> None:
    document = loaded(bundle / "bundle.json")
    document["files"] = {"int8": document["files"]["fp32"]}
    write_document(document, bundle)
    with pytest.raises(ConfigError, match="without an FP32 graph"):
        measure(bundle, DataOptions(calib=lab / "data"))


def test_a_graph_for_another_size_than_the_bundle_says_is_refused(lab: Path, bundle: Path) -> None:
    document = loaded(bundle / "bundle.json")
    document["input"]["hw"] = [32, 64]
    write_document(document, bundle)
    with pytest.raises(BundleError, match=r"images of \(64, 64, 3\).*\(32, 64, 3\)"):
        measure(bundle, DataOptions(calib=lab / "data"))


def test_masks_without_a_label_are_refused_and_not_scored_as_zero(
    lab: Path, bundle: Path, tmp_path: Path
) -> None:
    from PIL import Image

    data = shutil.copytree(lab / "data", tmp_path / "data")
    for mask in (data / "masks" / "validation").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 255)).save(mask)
    with pytest.raises(DatasetError, match="no pixel has a label"):
        measure(bundle, DataOptions(calib=data, val=data))


def test_an_unreadable_image_is_left_out_only_when_asked(
    lab: Path, bundle: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(lab / "data", tmp_path / "data")
    (data / "images" / "calibration" / "cal0.png").write_bytes(b"no picture")
    arguments = ("sensitivity", bundle, "--calib", data, "--json", tmp_path / "found.json")
    assert "cal0.png" in error_of(run_cli(*arguments))
    result = run_cli(*arguments, "--skip-bad")
    assert result.exit_code == 0, result.stderr
    assert "warning: calibration image left out: cal0.png" in result.stderr
    found = loaded(tmp_path / "found.json")
    assert (found["images"], found["error_images"]) == (2, 2)


def test_another_image_stands_in_for_one_that_cannot_be_read(
    lab: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter.sensitivity, "ERROR_IMAGES", 1)
    data = shutil.copytree(lab / "data", tmp_path / "data")
    (data / "images" / "validation" / "val0.png").write_bytes(b"no picture")
    options = DataOptions(calib=data, val=data, skip_bad=True)
    found = sensitivity_of_bundle(bundle, options, most_images=4, progress=SilentProgress())
    assert (found["error_images"], found["val_images"]) == (1, 3)


def test_mistakes_are_told_before_anything_is_measured(
    lab: Path, bundle: Path, tmp_path: Path
) -> None:
    calib = ("--calib", lab / "data")
    assert "--val-masks without --val" in error_of(
        run_cli("sensitivity", bundle, *calib, "--val-masks", lab / "data")
    )
    assert "which is a folder" in error_of(
        run_cli("sensitivity", bundle, *calib, "--out", tmp_path)
    )
    missing = error_of(run_cli("sensitivity", tmp_path / "none", *calib))
    assert "which is not a folder" in missing
    (bundle / "report.json").write_text("{}", encoding="utf-8")
    result = run_cli("sensitivity", bundle, *calib)
    assert "as format of a report" in error_of(result)
    assert "calibrate" not in result.stderr
