"""`riceseg export` as a user runs it: what is in the bundle, and that its numbers are true."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import nn

import exporter.export
from engines.bundle import bundle_from_folder
from engines.segmenter import Segmenter
from tests.tiny_segformer import (
    BIN,
    CLASSES,
    CONFIG,
    MEAN,
    PALETTE,
    ROOT,
    STD,
    environment,
    error_of,
    export_tiny,
    photo,
    run_cli,
    tiny_net,
    write_checkpoint,
    write_lab,
)

Labels = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def bundle(lab: Path) -> Path:
    """Everything switched on, times measured, by the console script."""
    arguments = ["--checkpoint", "tiny.pth", "--size", "64x64", "--int8", "--fp16", "--calib"]
    arguments += ["data", "--val", "data", "--max-drop", "20", "--runs", "1", "--out", "full"]
    done = subprocess.run(
        [BIN / "export", *arguments],
        cwd=lab,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "gate passed" in done.stdout
    return lab / "full"


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def validation(lab: Path) -> Iterator[tuple[Path, Labels, Labels]]:
    """Name, image (H, W, 3) and mask of the labelled photos."""
    for path in sorted((lab / "data/images/validation").iterdir()):
        mask = lab / "data/masks/validation" / path.name
        yield path, np.asarray(Image.open(path)), np.asarray(Image.open(mask))


def miou(pairs: list[tuple[Labels, Labels]], num_classes: int) -> float:
    """(truth, prediction) -> mean IoU in percent, by counting pixels class by class."""
    values = []
    for index in range(num_classes):
        both = either = 0
        for truth, prediction in pairs:
            labelled = truth != 255
            t, p = (truth == index) & labelled, (prediction == index) & labelled
            both += int((t & p).sum())
            either += int((t | p).sum())
        if either:
            values.append(100.0 * both / either)
    return sum(values) / len(values)


# --- the happy path ---------------------------------------------------------------------------


def test_the_bundle_holds_these_files_and_their_recorded_hashes(bundle: Path) -> None:
    record = bundle_from_folder(bundle)
    files = {key: info.file for key, info in record.files.items()}
    assert files == {
        "fp32": "model.onnx",
        "int8": "model.int8.onnx",
        "fp16": "model.fp16.onnx",
        "int8_fp16": "model.int8.fp16.onnx",
        "ranges": "ranges.json",
        "calibration_cache": "calibration.cache",
        "policy": "policy.json",
    }
    others = {"bundle.json", "report.json", "report.html"}
    assert {path.name for path in bundle.iterdir()} == {*files.values(), *others}
    for info in record.files.values():
        data = (bundle / info.file).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (info.sha256, info.bytes)


def test_the_bundle_says_what_the_runtime_needs(lab: Path, bundle: Path) -> None:
    record = bundle_from_folder(bundle)
    assert record.name == "segformer-custom"
    assert (record.classes, record.palette, record.num_outputs) == (CLASSES, PALETTE, 6)
    assert (record.input.hw, record.input.mean, record.input.std) == ((64, 64), MEAN, STD)
    assert (record.input.batch, record.outputs, record.opset) == ((1, 1, 1), ("labels",), 17)
    checkpoint = (lab / "tiny.pth").read_bytes()
    assert record.checkpoint.file == "tiny.pth"
    assert record.checkpoint.sha256 == hashlib.sha256(checkpoint).hexdigest()
    assert record.gate is not None
    assert record.gate.passed
    assert record.parity is not None
    assert record.parity["agreement"] >= 99.99


def test_no_folder_is_more_private_than_others_of_the_user(lab: Path, bundle: Path) -> None:
    assert bundle.stat().st_mode == (lab / "data").stat().st_mode


def test_every_form_was_measured(bundle: Path) -> None:
    report = report_of(bundle)
    names = ["PyTorch FP32", "ONNX FP32", "ONNX FP16", "ONNX INT8", "ONNX INT8+FP16"]
    assert [row["form"] for row in report["rows"]] == names
    for row in report["rows"]:
        assert row["error"] is None
        assert (row["runs"], row["batch"]) == (1, 1)
        assert 0 < row["latency_p50_ms"] <= row["latency_p95_ms"]
        assert row["peak_memory_mb"] > 5
        assert row["fps"] > 0
    hashes = {i["file"]: i["sha256"] for i in report["calibration"]["list"]}
    assert sorted(hashes) == ["cal0.png", "cal1.png", "cal2.png"]
    page = (bundle / "report.html").read_text(encoding="utf-8")
    assert "도열병" in page


def test_the_bundle_runs_where_there_is_only_numpy_and_onnxruntime(
    lab: Path, bundle: Path, tmp_path: Path
) -> None:
    """And the report's mIoU is that of the labels that come out, counted again."""
    for path, image, _ in validation(lab):
        np.save(tmp_path / f"{path.stem}.npy", image)
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        here = {'numpy', 'onnxruntime', 'engines', 'tensorrt', 'tensorrt_rtx'}\n"
        "        if top not in {*sys.stdlib_module_names, *here}:\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from engines import Segmenter\n"
        "for precision in ('fp32', 'fp16', 'int8'):\n"
        "    with Segmenter.open(sys.argv[1], precision=precision) as seg:\n"
        "        for path in sorted(Path('.').glob('val?.npy')):\n"
        "            np.save(f'{precision}-{path.stem}', seg(np.load(path)))\n"
        "bad = sorted(m for m in ('torch', 'onnx', 'PIL', 'cv2', 'exporter') if m in sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(bundle)], cwd=tmp_path, env=environment(), check=True
    )
    rows = {row["precision"]: row for row in report_of(bundle)["rows"][1:]}
    for precision in ("fp32", "fp16", "int8"):
        pairs = []
        for path, image, mask in validation(lab):
            labels = np.load(tmp_path / f"{precision}-{path.stem}.npy")
            assert labels.shape == image.shape[:2]
            pairs.append((mask, labels))
        assert rows[precision]["miou"] == pytest.approx(miou(pairs, 6), abs=1e-9)


def test_the_reports_first_row_is_the_checkpoint_by_mmsegmentations_protocol(
    lab: Path, bundle: Path
) -> None:
    net, pairs = tiny_net(), []
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    for _, image, mask in validation(lab):
        small = torch.from_numpy(cv2.resize(image, (64, 64))).float().permute(2, 0, 1)
        with torch.no_grad():
            logits = net(((small - mean) / std)[None])
            for hw in ((64, 64), mask.shape):
                logits = nn.functional.interpolate(logits, hw, mode="bilinear")
        pairs.append((mask, logits.argmax(1)[0].numpy().astype(np.uint8)))
    assert report_of(bundle)["rows"][0]["miou"] == pytest.approx(miou(pairs, 6), abs=0.05)


# --- options ----------------------------------------------------------------------------------


def run_graph(path: Path, batch: Labels) -> dict[str, np.ndarray[Any, Any]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": batch}), strict=True))


def photos(count: int, hw: tuple[int, int] = (64, 64)) -> Labels:
    return np.stack([photo(hw, 300 + i) for i in range(count)])


@pytest.mark.parametrize("output", ["labels", "logits", "both"])
def test_the_graph_has_the_outputs_asked_for(
    output: str, lab: Path, bundle: Path, tmp_path: Path
) -> None:
    wanted = {"labels": ("labels",), "logits": ("logits",), "both": ("labels", "logits")}[output]
    options = ["--output", output, "--fp16", "--int8", "--calib", lab / "data"]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    assert bundle_from_folder(tmp_path / "out").outputs == wanted
    batch = photos(1)
    expected = run_graph(bundle / "model.onnx", batch)["labels"]
    for name, least in (("model.onnx", 99.9), ("model.fp16.onnx", 99.0), ("model.int8.onnx", 85)):
        got = run_graph(tmp_path / "out" / name, batch)
        assert tuple(got) == wanted
        if "logits" in got:
            assert (got["logits"].shape, got["logits"].dtype) == ((1, 6, 64, 64), np.float32)
        labels = got["labels"] if "labels" in got else got["logits"].argmax(1)
        assert 100 * np.mean(labels == expected) >= least


def test_a_graph_with_logits_alone_is_validated_and_runs_too(lab: Path, tmp_path: Path) -> None:
    options = ["--output", "logits", "--val", lab / "data", "--max-drop", "20"]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    with Segmenter.open(tmp_path / "out") as segmenter:
        assert segmenter(photo((30, 50), 1)).shape == (30, 50)


def test_a_free_batch_gives_each_image_its_own_answer(lab: Path, tmp_path: Path) -> None:
    options = ["--dynamic-batch", "1:2:5", "--int8", "--calib", lab / "data"]
    assert export_tiny(lab, tmp_path / "out", *options).exit_code == 0
    assert bundle_from_folder(tmp_path / "out").input.batch == (1, 2, 5)
    batch = photos(3)
    for name in ("model.onnx", "model.int8.onnx"):
        together = run_graph(tmp_path / "out" / name, batch)["labels"]
        alone = [run_graph(tmp_path / "out" / name, image[None])["labels"][0] for image in batch]
        assert np.mean(together == np.stack(alone)) > 0.999


@pytest.mark.parametrize(
    "precision",
    [
        "",
        "--fp16",
        "--int8",
    ],
)
def test_a_fixed_batch_of_several_images(precision: str, lab: Path, tmp_path: Path) -> None:
    options = ["--dynamic-batch", "2:2:2", "--val", lab / "data", "--max-drop", "20"]
    options += [precision, "--calib", str(lab / "data")] if precision else []
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    assert run_graph(tmp_path / "out/model.onnx", photos(2))["labels"].shape == (2, 64, 64)


@pytest.mark.parametrize("opset", [13, 16, 20])
def test_other_opsets_give_the_same_labels(
    opset: int, lab: Path, bundle: Path, tmp_path: Path
) -> None:
    options = ["--opset", opset, "--fp16", "--int8", "--calib", lab / "data"]
    assert export_tiny(lab, tmp_path / "out", *options).exit_code == 0
    for name, least in (("model.onnx", 0.999), ("model.fp16.onnx", 0.99), ("model.int8.onnx", 0.9)):
        model = onnx.load(tmp_path / "out" / name)
        assert next(o.version for o in model.opset_import if o.domain == "") == opset
        got, want = (run_graph(f / name, photos(1))["labels"] for f in (tmp_path / "out", bundle))
        assert np.mean(got == want) >= least


@pytest.mark.parametrize(
    ("size", "resize"), [("33x65", "stretch"), ("48x80", "stretch"), ("100x60", "letterbox")]
)
def test_any_size_from_32_is_exported_and_verified(
    size: str, resize: str, lab: Path, tmp_path: Path
) -> None:
    options = ["--size", size, "--resize", resize, "--int8", "--calib", lab / "data"]
    options += ["--val", lab / "data", "--max-drop", "20"]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    with Segmenter.open(tmp_path / "out", precision="int8") as segmenter:
        assert "x".join(map(str, segmenter.bundle.input.hw)) == size
        assert segmenter.bundle.input.resize == resize
        assert segmenter(photo((51, 40), 1)).shape == (51, 40)


def test_the_four_calibrators_choose_different_ranges(lab: Path, tmp_path: Path) -> None:
    clips = {}
    for method in ("minmax", "percentile", "entropy", "mse"):
        options = ["--calibrator", method, "--int8", "--calib", lab / "data"]
        options += ["--percentile", "99"] if method == "percentile" else []
        assert export_tiny(lab, tmp_path / method, *options).exit_code == 0
        ranges = json.loads((tmp_path / method / "ranges.json").read_text())
        assert (ranges["method"], ranges["images"]) == (method, 3)
        assert report_of(tmp_path / method)["calibration"]["method"] == method
        clips[method] = {name: t["amax"] for name, t in ranges["tensors"].items()}
        for name, t in ranges["tensors"].items():
            assert 0 < t["amax"] <= max(-t["min"], t["max"]) * 1.01, name
    assert len({json.dumps(values) for values in clips.values()}) == 4


def test_calibration_images_come_from_a_folder_a_list_or_a_data_set(
    lab: Path, tmp_path: Path
) -> None:
    folder = lab / "data/images/calibration"
    listed = tmp_path / "목록 list.txt"
    lines = ["# in another order", *(str(p) for p in sorted(folder.iterdir(), reverse=True))]
    listed.write_text("\n".join(lines), encoding="utf-8")
    found = []
    for number, calib in enumerate((folder, listed, lab / "data")):
        out = tmp_path / str(number)
        assert export_tiny(lab, out, "--int8", "--calib", calib).exit_code == 0
        found.append({item["sha256"] for item in report_of(out)["calibration"]["list"]})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3


@pytest.mark.parametrize("fp16", [True, False])
@pytest.mark.parametrize("int8", [True, False])
def test_only_the_precisions_asked_for_are_written(
    fp16: bool, int8: bool, lab: Path, tmp_path: Path
) -> None:
    options = [*(["--fp16"] if fp16 else []), *(["--int8"] if int8 else [])]
    options += ["--calib", str(lab / "data"), "--val", str(lab / "data"), "--max-drop", "20"]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    keys = {"fp32"} | ({"fp16"} if fp16 else set())
    keys |= {"int8", "int8_fp16", "ranges", "calibration_cache", "policy"} if int8 else set()
    assert set(bundle_from_folder(tmp_path / "out").files) == keys


def test_the_pictures_of_the_report_say_what_they_show(lab: Path, tmp_path: Path) -> None:
    """Without INT8 the last form is the one that is compared."""
    options = ["--fp16", "--val", lab / "data", "--max-drop", "20"]
    assert export_tiny(lab, tmp_path / "out", *options).exit_code == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    assert captions[:5] == ["Image", "Truth", "PyTorch FP32", "ONNX FP16", "Difference"]


def test_without_any_image_the_graph_is_still_verified(lab: Path, tmp_path: Path) -> None:
    result = export_tiny(lab, tmp_path / "out", "--fp16")
    assert result.exit_code == 0
    assert "no --val" in result.stderr
    record = bundle_from_folder(tmp_path / "out")
    assert record.gate is None
    assert record.parity is not None
    assert record.parity["on"] == "a synthetic pattern"
    assert report_of(tmp_path / "out")["rows"][1]["miou"] is None


# --- classes ----------------------------------------------------------------------------------


def test_unnamed_outputs_are_kept_and_told(lab: Path, tmp_path: Path) -> None:
    """19 outputs and 6 names, as of a Cityscapes head trained on six classes."""
    write_checkpoint(tmp_path / "tiny.pth", num_outputs=19)
    options = ["--val", lab / "data", "--max-drop", "20"]
    result = export_tiny(tmp_path, tmp_path / "out", *options)
    assert result.exit_code == 0
    assert "warning: 6 class names for 19 outputs" in result.stderr
    record = bundle_from_folder(tmp_path / "out")
    assert (record.classes, record.num_outputs) == (CLASSES, 19)
    assert any("19 outputs" in line for line in record.warnings)
    with Segmenter.open(tmp_path / "out") as segmenter:
        pairs = [(mask, segmenter(image)) for _, image, mask in validation(lab)]
    assert max(int(labels.max()) for _, labels in pairs) > 5
    assert report_of(tmp_path / "out")["rows"][1]["miou"] == pytest.approx(miou(pairs, 6), abs=1e-9)


def test_only_the_first_outputs_are_kept_on_request(lab: Path, tmp_path: Path) -> None:
    assert export_tiny(lab, tmp_path / "out", "--keep-classes", "3").exit_code == 0
    record = bundle_from_folder(tmp_path / "out")
    assert (record.classes, record.num_outputs) == (CLASSES[:3], 3)
    with Segmenter.open(tmp_path / "out") as segmenter:
        assert set(np.unique(segmenter(photo((64, 96), 5)))) <= {0, 1, 2}


def test_names_and_colours_come_from_a_file_in_any_korean_encoding(
    lab: Path, tmp_path: Path
) -> None:
    names = "땅 #102030\n벼 #405060\n피 #708090\n물 #0a0b0c\n길 #0d0e0f\n하늘 #ffffff\n"
    (tmp_path / "이름.txt").write_bytes(names.encode("cp949"))
    result = export_tiny(lab, tmp_path / "out", "--classes", tmp_path / "이름.txt")
    assert result.exit_code == 0
    record = bundle_from_folder(tmp_path / "out")
    assert record.classes == ("땅", "벼", "피", "물", "길", "하늘")
    assert record.palette[0] == (16, 32, 48)


def test_mean_and_std_are_given_in_rgb_order_for_a_network_trained_on_bgr_too(
    lab: Path, tmp_path: Path
) -> None:
    config = CONFIG.replace("bgr_to_rgb=True", "bgr_to_rgb=False")
    write_checkpoint(tmp_path / "tiny.pth", config=config)
    stored, given = tmp_path / "stored", tmp_path / "given"
    assert export_tiny(tmp_path, stored).exit_code == 0
    assert bundle_from_folder(stored).input.mean == MEAN[::-1]  # the text's order was B, G, R
    assert export_tiny(tmp_path, given, "--mean", "1,2,3", "--std", "4,5,6").exit_code == 0
    spec = bundle_from_folder(given).input
    assert (spec.mean, spec.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


# --- gates ------------------------------------------------------------------------------------


def test_a_loss_beyond_the_limit_is_exit_code_1_and_the_bundle_stays(
    lab: Path, tmp_path: Path
) -> None:
    options = ["--int8", "--calib", lab / "data", "--val", lab / "data", "--max-drop", "-99"]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert "is kept and marked as failed" in error_of(result, code=1)
    assert "gate FAILED" in result.stdout
    gate = bundle_from_folder(tmp_path / "out").gate
    assert gate is not None
    assert (gate.passed, gate.max_drop) == (False, -99.0)
    assert report_of(tmp_path / "out")["gate"]["passed"] is False
    with Segmenter.open(tmp_path / "out") as segmenter:
        assert segmenter(photo((10, 20), 0)).shape == (10, 20)


def test_a_graph_that_computes_something_else_is_never_written(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(net: nn.Module, input_hw: tuple[int, int]) -> nn.Module:
        rewritten = right(net, input_hw)
        conv = rewritten.get_submodule("backbone.layers.2.1.0.ffn.layers.4")
        assert isinstance(conv, nn.Conv2d)
        conv.weight = nn.Parameter(conv.weight * 1.5)
        return rewritten

    right = exporter.export.rewritten_for_export
    monkeypatch.setattr(exporter.export, "rewritten_for_export", wrong)
    result = export_tiny(lab, tmp_path / "place/out", "--val", lab / "data")
    line = error_of(result, code=1)
    assert "does not reproduce PyTorch" in line
    assert "first node that diverges: /net/backbone/layers.2.1.0/ffn/layers/layers.4/Conv" in line
    assert list(tmp_path.iterdir()) == []


# --- images ------------------------------------------------------------------------------------


def test_masks_with_an_ignored_zero_are_recorded_so(lab: Path, tmp_path: Path) -> None:
    options = ["--val", lab / "data", "--reduce-zero-label", "--max-drop", "20"]
    assert export_tiny(lab, tmp_path / "out", *options).exit_code == 0
    with Segmenter.open(tmp_path / "out") as segmenter:
        assert segmenter.bundle.reduce_zero_label
        pairs = [
            (np.where(mask == 255, 255, mask - np.uint8(1)).astype(np.uint8), segmenter(image))
            for _, image, mask in validation(lab)
        ]
    expected = pytest.approx(miou(pairs, 6), abs=1e-9)
    assert report_of(tmp_path / "out")["rows"][1]["miou"] == expected
    again = run_cli("evaluate", tmp_path / "out", "--data", lab / "data", "--out", tmp_path / "r")
    assert again.exit_code == 0
    assert report_of(tmp_path / "r")["rows"][0]["miou"] == expected


def test_bad_images_are_left_out_on_request_and_named_everywhere(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "data", tmp_path / "data")
    for bad in ("validation/val0.png", "calibration/cal0.png"):  # the first ones of their folders
        (tmp_path / "data/images" / bad).write_text(f"no image {bad}")
    data = tmp_path / "data"
    options = ["--int8", "--calib", data, "--val", data, "--skip-bad", "--max-drop", "20"]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    for name in ("calibration image left out: cal0.png", "validation image left out: val0.png"):
        assert f"warning: {name}" in result.stderr
        assert any(line.startswith(name) for line in bundle_from_folder(tmp_path / "out").warnings)
    report = report_of(tmp_path / "out")
    assert (report["data"]["images"], report["calibration"]["images"]) == (3, 2)
    assert [item["file"] for item in report["calibration"]["list"]] == ["cal1.png", "cal2.png"]
    assert report["data"]["skipped"][0].startswith("val0.png: ")


# --- places ------------------------------------------------------------------------------------


def test_names_with_spaces_and_korean_relative_to_where_the_user_stands(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lab / "data", tmp_path / "논 사진 [1]")
    shutil.copy(lab / "tiny.pth", tmp_path / "벼 모델.pth")
    (tmp_path / "어디").mkdir()
    monkeypatch.chdir(tmp_path / "어디")
    names = ["--checkpoint", "../벼 모델.pth", "--size", "64x64", "--out", "새 폴더 [2]/묶음*"]
    options = ["--int8", "--calib", "../논 사진 [1]", "--val", "../논 사진 [1]", "--max-drop", "20"]
    result = run_cli("export", *names, *options)
    assert result.exit_code == 0, result.stderr
    assert bundle_from_folder("새 폴더 [2]/묶음*").checkpoint.file == "벼 모델.pth"
    assert [path.name for path in (tmp_path / "어디/새 폴더 [2]").iterdir()] == ["묶음*"]


def test_the_default_place_is_named_after_the_checkpoint(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_cli("export", "--checkpoint", lab / "tiny.pth", "--size", "64x64")
    assert result.exit_code == 0
    assert "report: build/tiny/report.html" in result.stdout
    assert bundle_from_folder("build/tiny").name == "segformer-custom"


def test_a_bundle_is_replaced_when_told_so(lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export_tiny(lab, out, "--fp16").exit_code == 0
    before = (out / "bundle.json").read_bytes()
    assert "already holds a bundle" in error_of(export_tiny(lab, out))
    assert (out / "bundle.json").read_bytes() == before
    assert export_tiny(lab, out, "--overwrite").exit_code == 0
    assert not (out / "model.fp16.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("arguments", [["--help"], ["--checkpoint", "nothing.pth"]])
def test_three_ways_to_call_it_are_one(arguments: list[str], tmp_path: Path) -> None:
    ways = ([BIN / "riceseg", "export"], [BIN / "export"], [sys.executable, "-m", "exporter"])
    said = set()
    for way in ways:
        done = subprocess.run(
            [*way, *arguments], cwd=tmp_path, env=environment(), capture_output=True, check=False
        )
        stderr = [line for line in done.stderr.splitlines() if not line.startswith(b"load")]
        said.add((done.returncode, done.stdout, tuple(stderr)))
    assert len(said) == 1


def test_the_demo_becomes_a_verified_int8_bundle(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    for part, count in (("validation", 3), ("calibration", 3)):
        for image in sorted((ROOT / "demo/images" / part).iterdir())[:count]:
            for kind, name in (("images", image.name), ("masks", f"{image.stem}.png")):
                source = ROOT / "demo" / kind / part / name
                if source.exists():
                    (demo / kind / part).mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, demo / kind / part)
    checkpoint = [
        "--model",
        "segformer-b0",
        "--checkpoint",
        ROOT / "demo/segformer_b0_crop_weed.pth",
    ]
    options = ["--int8", "--calib", demo, "--val", demo, "--out", tmp_path / "out"]
    result = run_cli("export", *checkpoint, *options)
    assert result.exit_code == 0, result.stderr
    torch_row, fp32, int8, int8_fp16 = report_of(tmp_path / "out")["rows"]
    assert torch_row["miou"] > 60
    assert abs(fp32["miou"] - torch_row["miou"]) < 0.5
    assert fp32["agreement"] > 99.99
    assert int8["agreement"] > 97
    assert int8_fp16["agreement"] > 97
    assert bundle_from_folder(tmp_path / "out").classes == ("background", "crop", "weed")
