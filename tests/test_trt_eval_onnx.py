"""scripts/trt_eval.py where there is no TensorRT: the same report from ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from tiny_models import (
    bundle_document,
    file_entry,
    model_from_text,
    tiny_bundle,
    write_document,
    write_onnx,
)

from engines.bundle import bundle_from_folder
from engines.errors import GraphError
from engines.onnx_predictor import OnnxPredictor
from engines.reports.report import report_from_file

# Bands of 64 are 0 0 1 | 1 2 3, of 128 0 0 0 | 0 1 1.
RED = [[0, 63, 64], [127, 128, 255]]
BANDS = [[0, 0, 1], [1, 2, 3]]

# logits[k] = -|red / 64 - k - 0.49|: the label is red // 64 (but for rounding, on these values).
LOGITS = """
    bands (uint8[1, 2, 3, 3] image) => (float[1, 4, 2, 3] logits)
    <int64 channel = {0}, float step = {64.0}, float[1,4,1,1] centres = {0.49, 1.49, 2.49, 3.49},
     int64[4] planes = {1, 1, 2, 3}>
    {
        levels = Cast <to = 1> (image)
        red = Gather <axis = 3> (levels, channel)
        plane = Reshape (red, planes)
        bands_of_red = Div (plane, step)
        offset = Sub (bands_of_red, centres)
        distance = Abs (offset)
        logits = Neg (distance)
    }
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "trt_eval.py"
    spec = importlib.util.spec_from_file_location("trt_eval", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def labelled(folder: Path, red: Any, truth: Any) -> Path:
    image = np.stack([np.array(red, np.uint8)] * 3, axis=2)
    for part, values in {"images": image, "masks": np.array(truth, np.uint8)}.items():
        (folder / part).mkdir(parents=True)
        PillowImage.fromarray(values).save(folder / part / "벼.png")
    return folder


def measured(script: ModuleType, bundle: Path, data: Path, *options: str) -> dict[str, Any]:
    out = bundle.parent / "out"
    arguments = ["--bundle", bundle, "--data", data, "--out", out, "--iterations", 3, *options]
    assert script.main([str(argument) for argument in arguments]) == 0
    return report_from_file(out / "report.json")


@pytest.mark.parametrize("options", [["--runtime", "onnx"], []])
def test_onnx_files_are_measured_where_tensorrt_is_missing(
    script: ModuleType, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    bundle = tiny_bundle(tmp_path / "bundle", steps={"fp32": 64, "int8": 128})
    report = measured(script, bundle, labelled(tmp_path / "data", RED, BANDS), *options)
    fp32, int8 = report["rows"]
    assert (fp32["form"], int8["form"]) == ("ONNX FP32", "ONNX INT8")
    # Bands of 128: class 0 hits 2 of 4, the others nothing.
    assert (fp32["miou"], int8["miou"]) == (100.0, 12.5)
    assert fp32["sha256"] == bundle_from_folder(bundle).files["fp32"].sha256
    assert fp32["latency_p99_ms"] >= fp32["latency_p50_ms"] > 0
    assert (fp32["runs"], fp32["warmup"]) == (3, 5)
    told = any("ONNX Runtime instead of TensorRT" in line for line in report["warnings"])
    assert told is (options == [])


def test_windows_run_on_onnx_runtime(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    path = write_onnx(model_from_text(LOGITS), folder / "tiny.fp32.onnx")
    document = bundle_document(files={"fp32": file_entry(path, folder)})
    document["outputs"] = ["logits"]
    document["test_mode"] = {"mode": "slide", "crop_size": [2, 3], "stride": [1, 2]}
    write_document(document, folder)
    red = np.array([[0, 64, 128, 255, 0], [64, 64, 64, 64, 64], [255, 128, 64, 0, 255]])
    data = labelled(tmp_path / "data", red, red // 64)
    report = measured(script, folder, data, "--mode", "slide", "--runtime", "onnx")
    assert report["rows"][0]["miou"] == 100.0
    assert any("4.0 windows an image" in line for line in report["warnings"])


def test_logits_of_onnx_runtime_are_those_of_the_graph(tmp_path: Path) -> None:
    path = write_onnx(model_from_text(LOGITS), tmp_path / "logits.onnx")
    image = np.zeros((2, 2, 3, 3), np.uint8)
    image[0, :, :, 0] = RED
    with OnnxPredictor(path, threads=1) as predictor:
        assert predictor.has_logits
        logits = predictor.logits(image)  # The graph's batch is 1.
        labels = predictor.labels(image)
    assert logits.shape == (2, 4, 2, 3)
    assert logits.dtype == np.float32
    centres = np.array([0.49, 1.49, 2.49, 3.49]).reshape(4, 1, 1)
    np.testing.assert_allclose(logits[0], -np.abs(np.array(RED) / 64 - centres), atol=1e-6)
    assert labels.tolist() == [BANDS, [[0, 0, 0], [0, 0, 0]]]


def test_a_graph_of_labels_alone_has_no_logits(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    with OnnxPredictor(bundle / "tiny.fp32.onnx", threads=1) as predictor:
        assert not predictor.has_logits
        with pytest.raises(GraphError, match=r"gives labels alone.*--output both"):
            predictor.logits(np.zeros((1, 2, 3, 3), np.uint8))


def test_a_graph_that_was_altered_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    data = labelled(tmp_path / "data", RED, BANDS)
    document = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    document["files"]["fp32"]["sha256"] = "0" * 64
    write_document(document, bundle)
    arguments = ["--bundle", str(bundle), "--data", str(data), "--runtime", "onnx"]
    assert script.main(arguments) == 2
    assert "with SHA-256" in capsys.readouterr().err.splitlines()[-1]
