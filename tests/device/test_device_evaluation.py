"""A bundle measured on a made-up board: rows, agreement, gate, comparison with PyTorch's report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from device_bundle import CHECKPOINT, bundle_in, export_report, labelled_folder
from made_device import FIGURES, Device
from tiny_engines import BANDS, RED

from engines.dataset import pairs_from_folder
from engines.errors import (
    BundleError,
    ConfigError,
    DatasetError,
    DeviceError,
    EngineError,
    GateError,
    ImageError,
)
from engines.evaluation.device import check_gate, report_from_device
from engines.evaluation.evaluate import pairs_sha256
from engines.evaluation.request import DeviceRequest
from engines.images import sha256_of_file
from engines.progress import SilentProgress
from engines.reports.report import checked_report
from engines.trt import bundle_engine

# Bands of 128 make 0 0 0 | 0 1 1 of RED, against the truth 0 0 1 | 1 2 3: class 0 hits 2 of 4,
# the others nothing, so mIoU is 12.5, and 2 of 6 pixels have the label of bands of 64.
MIOU_128 = 12.5


@pytest.fixture
def device(tmp_path, monkeypatch):
    made = Device(monkeypatch, tmp_path / "bundle")
    yield made
    assert made.leaks() == []


@pytest.fixture
def data(tmp_path):
    return labelled_folder(tmp_path / "벼", {"a": (RED, BANDS), "b": (RED[::-1], BANDS[::-1])})


def hash_of(data: Path) -> str:
    return pairs_sha256(pairs_from_folder(data))


def reported(device: Device, data: Path, **options) -> dict:
    request = DeviceRequest(**{"bundle": device.folder, "data": data, "build": False, **options})
    return checked_report(report_from_device(request, SilentProgress()))


def labels_of(data: Path, **labels) -> dict:
    return {data / "images" / f"{name}.png": value for name, value in labels.items()}


def test_speed_and_accuracy_of_each_precision_are_those_of_one_engine_file(device, data) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16", "int8"))
    paths = {p: device.engine(p, step=128 if p == "int8" else 64) for p in ("fp16", "int8", "fp32")}
    report = reported(device, data, iterations=7, warmup=3)
    rows = report["rows"]
    assert [row["form"] for row in rows] == ["TensorRT FP32", "TensorRT FP16", "TensorRT INT8"]
    assert [row["miou"] for row in rows] == pytest.approx([100, 100, MIOU_128])
    assert [row["runtime"] for row in rows] == ["TensorRT 10.3.0"] * 3
    hashes = [sha256_of_file(paths[p]) for p in ("fp32", "fp16", "int8")]
    assert [row["sha256"] for row in rows] == hashes
    assert device.timed == [(sha256, 7, 3) for sha256 in hashes]
    assert rows[0]["file"] == "fp32.engine"
    assert rows[0]["error"] is None


def test_a_row_has_every_figure_of_the_benchmark(device, data) -> None:
    bundle_in(device.folder)
    device.engine("fp16")
    (row,) = reported(device, data)["rows"]
    for key, value in asdict(FIGURES).items():
        assert row[key] == value, key


def test_the_report_says_on_what_it_was_measured(device, data) -> None:
    bundle_in(device.folder)
    device.engine("fp16")
    report = reported(device, data)
    assert report["data"] == {
        "folder": str(data),
        "images": 2,
        "skipped": [],
        "sha256": hash_of(data),
    }
    assert report["checkpoint"]["sha256"] == CHECKPOINT
    assert report["machine"]["python"]
    assert report["input_hw"] == [2, 3]
    assert report["mode"] == "whole"
    assert report["gate"] is None


def test_pytorchs_row_comes_first_with_its_scores_and_without_its_speed(device, data) -> None:
    bundle_in(device.folder, report=export_report(88.0))
    device.engine("fp16")
    first, second = reported(device, data)["rows"]
    assert (first["form"], first["runtime"]) == ("PyTorch FP32", "PyTorch 2.13.0")
    assert (first["miou"], first["aacc"], first["iou"]) == (88.0, 95.0, [88.0] * 4)
    assert first["latency_p50_ms"] is None
    assert first["peak_memory_mb"] is None
    assert second["form"] == "TensorRT FP16"


def test_agreement_is_with_the_labels_stored_at_export(device, data) -> None:
    stored = labels_of(data, a=BANDS, b=[[0, 2, 3], [0, 0, 0]])  # 3 of 6 as bands of 64 see it
    bundle_in(
        device.folder,
        precisions=("fp16", "int8"),
        reference=stored,
        report=export_report(data_sha256=hash_of(data)),
    )
    device.engine("fp16")
    device.engine("int8", step=128)
    report = reported(device, data)
    # RED upside down is 1 2 3 | 0 0 1: of b only the 0 0 in the middle of the last row are equal.
    bands_64 = np.array(BANDS[::-1]) == [[0, 2, 3], [0, 0, 0]]
    assert bands_64.sum() == 4
    # Bands of 128 make 0 1 1 | 0 0 0 of it: all but two are equal; of a two are.
    assert [row["agreement"] for row in report["rows"]] == pytest.approx(
        [100, 100 * 10 / 12, 100 * 6 / 12]
    )
    assert report["warnings"] == []
    assert [item["image"] for item in report["worst"]] == ["a.png", "b.png"]


def test_images_without_stored_labels_are_counted(device, data) -> None:
    bundle_in(device.folder, reference=labels_of(data, b=BANDS[::-1]), report=export_report())
    device.engine("fp16")
    report = reported(device, data)
    assert report["rows"][1]["agreement"] == 100.0
    assert any(line.startswith("reference labels for 1 of 2 images") for line in report["warnings"])


def test_without_stored_labels_there_is_no_agreement_and_that_is_said(device, data) -> None:
    bundle_in(device.folder)
    device.engine("fp16")
    report = reported(device, data)
    assert report["rows"][0]["agreement"] is None
    assert any("--keep-reference" in line for line in report["warnings"])
    assert any("PyTorch's mIoU is not known" in line for line in report["warnings"])


def test_a_precision_that_fails_keeps_its_error_and_the_others_are_measured(device, data) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16", "int8"))
    device.engine("fp16")
    device.engine("int8", refuses=["deserialize"])
    fp32, fp16, int8 = reported(device, data)["rows"]
    assert "no fp32 engine for this machine" in fp32["error"]
    assert fp16["error"] is None
    assert fp16["miou"] == 100.0
    assert "does not load" in int8["error"]
    assert (fp32["miou"], int8["miou"]) == (None, None)


def test_an_engine_for_another_gpu_is_a_row_with_the_comparison(device, data) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16"))
    device.engine("fp16")
    device.engine("fp32", header={"gpu_name": "RTX 4090", "compute_capability": (8, 9)})
    row, _ = reported(device, data)["rows"]
    assert "built for RTX 4090 (8.9), this is Orin (8.7)" in row["error"]


def test_an_engine_of_another_input_size_is_a_row_with_an_error(device, data) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16"))
    device.engine("fp16")
    device.engine("fp32", hw=(4, 6))
    row, _ = reported(device, data)["rows"]
    assert "'fp32.engine' for input (4, 6) with 3 channels" in row["error"]


def test_an_engine_that_changes_while_it_is_measured_is_a_row_with_an_error(device, data) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16"))
    device.engine("fp16")
    device.engine("fp32")
    device.during_benchmark = lambda path: device.engine("fp32", step=128)
    row, _ = reported(device, data)["rows"]
    assert "which was changed while it was measured" in row["error"]


def test_where_nothing_could_be_measured_the_first_error_is_raised(device, data) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16"))
    with pytest.raises(EngineError, match="no fp32 engine for this machine"):
        reported(device, data)


def test_only_the_precisions_asked_for_are_measured(device, data) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16", "int8"))
    device.engine("fp16")
    device.engine("int8")
    rows = reported(device, data, precisions=("int8", "fp16"))["rows"]
    assert [row["precision"] for row in rows] == ["fp16", "int8"]


def test_a_precision_that_the_bundle_lacks_is_refused(device, data) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16"))
    with pytest.raises(ConfigError, match=r"precision 'int8'; expected .*fp32, fp16"):
        reported(device, data, precisions=("int8",))
    bundle_in(device.folder, precisions=())
    with pytest.raises(ConfigError, match="a bundle without an ONNX file"):
        reported(device, data)


@pytest.mark.parametrize(("miou", "passed"), [(13.4, True), (13.6, False)])
def test_the_gate_compares_the_worst_precision_with_pytorch(
    device, data, miou: float, passed: bool
) -> None:
    report = export_report(miou, data_sha256=hash_of(data))
    bundle_in(device.folder, precisions=("fp16", "int8"), report=report)
    device.engine("fp16")
    device.engine("int8", step=128)
    found = reported(device, data, max_drop=1.0)
    assert found["gate"]["drop"] == pytest.approx(miou - MIOU_128)
    assert found["gate"]["passed"] is passed
    request = DeviceRequest(device.folder, data, max_drop=1.0)
    if passed:
        check_gate(found, request)
    else:
        with pytest.raises(GateError, match=r"mIoU fell by 1\.10 points, at most 1\.00 allowed"):
            check_gate(found, request)


def test_a_failed_precision_fails_the_gate(device, data) -> None:
    bundle_in(device.folder, precisions=("fp16", "int8"), report=export_report(50.0))
    device.engine("fp16")
    assert reported(device, data, max_drop=1.0)["gate"]["passed"] is False


def test_a_gate_without_pytorchs_scores_is_refused_before_anything_is_measured(
    device, data
) -> None:
    bundle_in(device.folder)
    device.engine("fp16")
    with pytest.raises(ConfigError, match="--max-drop without PyTorch's mIoU"):
        reported(device, data, max_drop=1.0)
    bundle_in(device.folder, report=export_report(data_sha256="0" * 64))
    with pytest.raises(ConfigError, match=r"--max-drop against .* measured on other images"):
        reported(device, data, max_drop=1.0)
    assert device.timed == []


def test_a_gate_whose_images_turn_out_to_be_others_is_not_decided(device, data) -> None:
    all_images = hash_of(data)
    bundle_in(device.folder, report=export_report(50.0, data_sha256=all_images))
    device.engine("fp16")
    (data / "images" / "a.png").write_bytes(b"no image")
    report = reported(device, data, max_drop=1.0, skip_bad=True)
    assert report["gate"] is None
    assert report["data"]["images"] == 1
    assert any(line.startswith("left out: a.png: got ") for line in report["warnings"])
    with pytest.raises(ConfigError, match="measured on other images"):
        check_gate(report, DeviceRequest(device.folder, data, max_drop=1.0))


@pytest.mark.parametrize(
    ("sha256", "said"),
    [
        (None, "not known whether PyTorch's mIoU, from the export's report, was measured on the "
               "same images as here (16 there, 2 here)"),
        ("0" * 64, "was measured on other images (16 there, 2 here)"),
    ],
)  # fmt: skip
def test_it_is_said_when_pytorch_was_measured_on_other_images(
    device, data, sha256: str | None, said: str
) -> None:
    bundle_in(device.folder, report=export_report(data_sha256=sha256))
    device.engine("fp16")
    assert any(said in line for line in reported(device, data)["warnings"])


def test_another_report_can_be_compared_with(device, data, tmp_path) -> None:
    bundle_in(device.folder, report=export_report(10.0))
    device.engine("fp16")
    other = tmp_path / "다른 보고서"
    other.mkdir()
    text = json.dumps(export_report(77.0, data_sha256=hash_of(data)))
    (other / "report.json").write_text(text, encoding="utf-8")
    for against in other, other / "report.json":
        report = reported(device, data, against=against)
        assert report["rows"][0]["miou"] == 77.0
        assert not any("images" in line for line in report["warnings"])


@pytest.mark.parametrize(
    ("report", "error", "match"),
    [
        ("no JSON", BundleError, "expected a report.json"),
        ({"format": "riceseg-bundle"}, BundleError, "riceseg-report"),
        (export_report(None), ConfigError, "a report without PyTorch's scores"),
        (export_report(checkpoint="d" * 64), ConfigError, "of checkpoint dddddddddddd"),
        ({**export_report(), "rows": export_report()["rows"][1:]}, ConfigError, "without PyTorch"),
        (
            {**export_report(), "classes": ["a", "b", "c", "d"]},
            ConfigError,
            r"with 4 classes \(a, b, c, d\); expected the bundle's 4 \(background, 정상",
        ),
    ],
)
def test_a_report_that_cannot_be_compared_with_is_refused(
    device, data, tmp_path, report, error, match: str
) -> None:
    bundle_in(device.folder)
    device.engine("fp16")
    path = tmp_path / "other.json"
    path.write_text(report if isinstance(report, str) else json.dumps(report), encoding="utf-8")
    with pytest.raises(error, match=match):
        reported(device, data, against=path)
    with pytest.raises(BundleError, match=r"none\.json"):
        reported(device, data, against=tmp_path / "none.json")


def test_a_report_of_an_export_without_validation_leaves_pytorchs_row_out(device, data) -> None:
    bundle_in(device.folder, report=export_report(None))
    device.engine("fp16")
    report = reported(device, data)
    assert [row["form"] for row in report["rows"]] == ["TensorRT FP16"]
    assert any("PyTorch's mIoU is not known" in line for line in report["warnings"])


def test_windows_run_over_images_of_their_own_size(device, tmp_path) -> None:
    # 3x5 pixels, windows of 2x3 every 1x2: rows at 0 and 1, columns at 0 and 2, 4 windows.
    red = np.array([[0, 64, 128, 255, 0], [64, 64, 64, 64, 64], [255, 128, 64, 0, 255]])
    data = labelled_folder(tmp_path / "data", {"a": (red, red // 64)})
    bundle_in(
        device.folder,
        outputs=("labels", "logits"),
        test_mode={"mode": "slide", "crop_size": [2, 3], "stride": [1, 2]},
        report=export_report(),
        reference=labels_of(data, a=BANDS),
    )
    device.engine("fp16", outputs=["labels", "logits"])
    report = reported(device, data, mode="slide")
    row = report["rows"][1]
    assert (row["form"], row["miou"]) == ("TensorRT FP16", 100.0)
    assert row["agreement"] is None
    assert report["mode"] == "slide"
    said = "\n".join(report["warnings"])
    assert "windows of 2x3 every 1x2 pixels" in said
    assert "TensorRT FP16: 4.0 windows an image on average" in said
    assert "PyTorch's mIoU is of whole images" in said
    assert (row["mode"], row["tta"]) == ("slide", "none")


def test_windows_run_at_the_scale_that_the_bundle_records(device, tmp_path) -> None:
    # 6x10 pixels become 3x5: 4 windows; at their own size they would be 25.
    red = np.zeros((6, 10))
    data = labelled_folder(tmp_path / "data", {"a": (red, red)})
    scale = {"limits": [5, 3], "keep_ratio": True, "multiple": 1}
    bundle_in(
        device.folder,
        outputs=("labels", "logits"),
        test_mode={"mode": "slide", "crop_size": [2, 3], "stride": [1, 2], "tested": scale},
    )
    device.engine("fp16", outputs=["labels", "logits"])
    said = "\n".join(reported(device, data, mode="slide")["warnings"])
    assert "TensorRT FP16: 4.0 windows an image on average" in said
    assert "on images of 5x3 (width x height) with their ratio kept" in said


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ({"mode": "whole", "tta": "none"}, None),
        ({"mode": "slide", "tta": "none"}, "mIoU is of windows, the others are of whole images"),
        ({"mode": "whole", "tta": "flip"}, "mIoU is of whole images with flip, the others are of"),
    ],
)
def test_pytorchs_images_that_were_run_in_another_way_are_told(device, data, way, said) -> None:
    report = export_report()
    report["rows"][0].update(way)
    bundle_in(device.folder, report=report)
    device.engine("fp16")
    found = [line for line in reported(device, data)["warnings"] if "device alone" in line]
    assert (said is None) == (found == [])
    assert said is None or said in found[0]


def test_windows_need_logits(device, data) -> None:
    bundle_in(device.folder)
    device.engine("fp16")
    with pytest.raises(ConfigError, match="--mode slide for tiny, whose graph gives labels only"):
        reported(device, data, mode="slide")


def test_an_engine_without_the_bundles_logits_is_an_error(device, data) -> None:
    bundle_in(device.folder, outputs=("labels", "logits"))
    device.engine("fp16")
    with pytest.raises(ConfigError, match="tiny fp16, which gives labels only"):
        reported(device, data, mode="slide")


def test_a_model_trained_for_windows_says_so_when_run_on_whole_images(device, data) -> None:
    bundle_in(device.folder, test_mode={"mode": "slide", "crop_size": None, "stride": None})
    device.engine("fp16")
    assert any(
        "trained to be run on windows" in line for line in reported(device, data)["warnings"]
    )


def test_images_without_masks_are_refused(device, data) -> None:
    bundle_in(device.folder)
    device.engine("fp16")
    (data / "masks" / "b.png").unlink()
    with pytest.raises(DatasetError, match="1 images without a mask"):
        reported(device, data)
    for file in (data / "masks").iterdir():
        file.unlink()
    (data / "masks").rmdir()
    with pytest.raises(DatasetError, match="'images' has no masks"):
        reported(device, data)


def test_a_mask_of_another_size_and_a_broken_image_stop_everything(device, data) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16"))
    device.engine("fp32")
    device.engine("fp16")
    (data / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.png"):
        reported(device, data)
    labelled_folder(data, {"a": (RED, [[0]])})
    with pytest.raises(DatasetError, match="expected the same size"):
        reported(device, data)


def test_masks_without_any_label_are_refused(device, tmp_path) -> None:
    bundle_in(device.folder)
    device.engine("fp16")
    data = labelled_folder(tmp_path / "data", {"a": (RED, np.full((2, 3), 255))})
    with pytest.raises(DatasetError, match="no pixel has a label"):
        reported(device, data)


def test_stored_labels_that_were_altered_are_refused(device, data) -> None:
    bundle_in(device.folder, reference=labels_of(data, a=BANDS))
    device.engine("fp16")
    path = device.folder / "reference.npz"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(BundleError, match=r"'reference\.npz' with SHA-256"):
        reported(device, data)


def test_a_missing_engine_is_built_and_then_measured(device, data, monkeypatch) -> None:
    bundle_in(device.folder)
    shown = SilentProgress()

    def build(folder, options, *, into, progress, **_):
        assert progress is shown
        return SimpleNamespace(path=device.engine(options.precision))

    monkeypatch.setattr(bundle_engine, "engine_from_bundle", build)
    report = report_from_device(DeviceRequest(device.folder, data), shown)
    (row,) = report["rows"]
    assert row["miou"] == 100.0
    assert row["sha256"] == sha256_of_file(device.folder / "engines" / "fp16.engine")
    assert any("engine built when it was opened" in line for line in report["warnings"])


def test_versions_and_gpu_are_those_that_ran(device, data) -> None:
    bundle_in(device.folder)
    device.engine("fp16")
    report = reported(device, data)
    assert report["versions"]["TensorRT"] == "10.3.0"
    assert report["versions"]["CUDA binding"]
    assert report["machine"].get("device") == "Orin"


def test_a_benchmark_that_fails_keeps_the_scores_and_says_why(device, data) -> None:
    bundle_in(device.folder)
    device.engine("fp16")

    def fails(path):
        raise DeviceError("no memory", expected="more", do="close programs")

    device.during_benchmark = fails
    (row,) = reported(device, data)["rows"]
    assert row["miou"] == 100.0
    assert row["latency_p50_ms"] is None
    assert row["error"] == "got no memory; expected more; do this: close programs"


def without_tensorrt(monkeypatch) -> None:
    def missing(**_):
        raise DeviceError("no package 'tensorrt'", expected="TensorRT", do="install it")

    monkeypatch.setattr("engines.trt.api.load_tensorrt", missing)


def test_without_tensorrt_the_advice_names_the_other_runtime(device, data, monkeypatch) -> None:
    bundle_in(device.folder)
    without_tensorrt(monkeypatch)
    with pytest.raises(DeviceError, match=r"no package 'tensorrt'.*--runtime onnx"):
        reported(device, data, runtime="tensorrt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"no package 'tensorrt'.*--runtime onnx"):
        reported(device, data, runtime="auto")
