"""scripts/trt_eval.py: what it prints and writes, its exit codes, and what it can do without."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from device_bundle import CLASSES, bundle_in, export_report, labelled_folder
from made_device import Device
from tiny_engines import BANDS, RED

from engines.reports.report import aligned_table, report_from_file
from engines.reports.text import text_of_report

SCRIPT = Path(__file__).parents[2] / "scripts" / "trt_eval.py"


@pytest.fixture
def device(tmp_path, monkeypatch):
    made = Device(monkeypatch, tmp_path / "bundle")
    yield made
    assert made.leaks() == []


@pytest.fixture
def data(tmp_path):
    return labelled_folder(tmp_path / "벼", {"a": (RED, BANDS)})


def main(*arguments: object) -> int:
    spec = importlib.util.spec_from_file_location("trt_eval", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module.main([str(argument) for argument in arguments])


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    """In a process of its own that knows nothing of the checkout but the script's path."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def cells_of(text: str, heading: str) -> dict:
    """The table below a heading: row name -> column heading -> cell."""
    lines = text.partition(f"## {heading}\n")[2].split("\n## ")[0].splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    columns = table[0]
    return {row[0]: {columns[i]: row[i] for i in range(1, len(row))} for row in table[2:]}


def test_tables_and_both_files_are_written(device, data, tmp_path, capsys) -> None:
    bundle_in(
        device.folder,
        precisions=("fp16", "int8"),
        report=export_report(88.0),
        reference={data / "images" / "a.png": BANDS},
    )
    device.engine("fp16")
    device.engine("int8", step=128)
    out = tmp_path / "결과"
    assert main("--bundle", device.folder, "--data", data, "--no-build", "--out", out) == 0
    captured = capsys.readouterr()
    text = (out / "report.md").read_text(encoding="utf-8")
    assert captured.out == text + "\n"
    accuracy = cells_of(text, "Accuracy")
    assert list(accuracy) == ["PyTorch FP32", "TensorRT FP16", "TensorRT INT8"]
    assert accuracy["PyTorch FP32"]["mIoU"] == "88.00"
    assert accuracy["PyTorch FP32"]["change"] == "–"
    # Bands of 128: see test_device_evaluation.
    assert accuracy["TensorRT INT8"]["mIoU"] == "12.50"
    assert accuracy["TensorRT INT8"]["change"] == "-75.50"
    assert accuracy["TensorRT INT8"]["equal %"] == "33.33"
    time = cells_of(text, "Time of a call")
    assert list(time) == ["TensorRT FP16", "TensorRT INT8"]
    assert time["TensorRT FP16"] == {
        "copy in ms": "0.50",
        "compute ms": "8.00",
        "copy out ms": "0.25",
        "p50 ms": "10.0",
        "p95 ms": "11.0",
        "p99 ms": "12.0",
        "fps": "99.0",
        "fps (events)": "125.0",
    }
    assert cells_of(text, "Memory and file")["TensorRT FP16"]["GPU MB"] == "40"
    board = cells_of(text, "Board while it ran")["TensorRT FP16"]
    assert (board["W"], board["mJ / image"], board["throttled"]) == ("7.50", "75.0", "no")
    assert cells_of(text, "IoU of each class")["도열병"]["TensorRT FP16"] == "100.00"
    report = report_from_file(out / "report.json")
    assert [row["form"] for row in report["rows"]] == list(accuracy)
    assert "written: " in captured.err


def test_the_exit_code_is_1_when_too_much_was_lost(device, data, tmp_path, capsys) -> None:
    bundle_in(device.folder, precisions=("int8",), report=export_report(88.0))
    device.engine("int8", step=128)
    arguments = ["--bundle", device.folder, "--data", data, "--no-build", "--out", tmp_path / "o"]
    assert main(*arguments, "--max-drop", "80") == 0
    assert main(*arguments, "--max-drop", "75") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: mIoU fell by 75.50 points, at most 75.00 allowed"
    assert report_from_file(tmp_path / "o" / "report.json")["gate"]["passed"] is False


@pytest.mark.parametrize(
    ("options", "precisions"),
    [
        ([], ["fp32", "fp16", "int8"]),
        (["--precision", "int8,fp16"], ["fp16", "int8"]),
        (["--precision", "int8", "--precision", "fp32"], ["fp32", "int8"]),
    ],
)
def test_precisions_are_a_list_or_repeated(device, data, tmp_path, options, precisions) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16", "int8"))
    for precision in ("fp32", "fp16", "int8"):
        device.engine(precision)
    out = tmp_path / "out"
    main("--bundle", device.folder, "--data", data, "--out", out, "--iterations", 9, *options)
    rows = report_from_file(out / "report.json")["rows"]
    assert [row["precision"] for row in rows] == precisions
    assert [runs for _, runs, _ in device.timed] == [9] * len(precisions)


def test_a_failed_precision_is_shown_with_its_reason(device, data, tmp_path, capsys) -> None:
    bundle_in(device.folder, precisions=("fp32", "fp16"))
    device.engine("fp16")
    out = tmp_path / "out"
    assert main("--bundle", device.folder, "--data", data, "--no-build", "--out", out) == 0
    text = capsys.readouterr().out
    assert cells_of(text, "Accuracy")["FP32"]["mIoU"] == "failed"
    assert "- FP32 failed: got no fp32 engine for this machine" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--bundle", "none"], "got 'none', which is not a folder"),
        (["--data", "none"], "got 'none', which is not a folder"),
        (["--masks", "none"], "got 'none', which is not a folder"),
        (["--against", "none.json"], "expected a report.json"),
        (["--precision", "fp8"], "'fp8' is none of fp32, fp16, int8"),
        (["--precision", "int8"], "got precision 'int8'"),
        (["--precision", ""], "'' is none of"),
        (["--iterations", "0"], "'0' is no whole number from 1"),
        (["--warmup", "-1"], "'-1' is no whole number from 0"),
        (["--mode", "tiles"], "invalid choice: 'tiles'"),
        (["--mode", "slide"], "whose graph gives labels only"),
        (["--runtime", "cuda"], "invalid choice: 'cuda'"),
        (["--max-drop", "nan"], "'nan' is no number from -100 to 100"),
        (["--max-drop", "1"], "--max-drop without PyTorch's mIoU"),
        (["--out", "bundle/bundle.json"], "expected a folder that can be written to"),
        (["--size", "512x512"], "unrecognized arguments: --size 512x512"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    device, data, tmp_path, monkeypatch, capsys, change, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle_in(device.folder)
    device.engine("fp16")
    assert main("--bundle", "bundle", "--data", data, "--no-build", *change) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "; do this: " in errors[0]
    assert "Traceback" not in captured.err


def test_bundle_and_data_must_be_given(capsys) -> None:
    assert main() == 2
    assert "the following arguments are required: --bundle, --data" in capsys.readouterr().err


def test_it_runs_from_a_checkout_wherever_one_stands(tmp_path) -> None:
    (tmp_path / "engines").mkdir()  # a folder of that name is not taken for the package
    helped = run(tmp_path, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--bundle DIR" in helped.stdout
    failed = run(tmp_path, "--bundle", "없음", "--data", "x")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("error: got '없음', which is not a folder")


def test_nothing_that_a_board_lacks_is_imported(tmp_path) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['trt_eval.py', '--bundle', 'x', '--data', 'y']\n"
        f"try:\n    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 2, end.code\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, check=True
    )
    loaded = set(found.stdout.decode().split())
    assert "numpy" in loaded
    assert loaded.isdisjoint(
        {"torch", "onnx", "onnxruntime", "click", "rich", "jinja2", "exporter", "calibration"}
    )


def test_columns_are_straight_also_with_korean_names() -> None:
    table = aligned_table(["class", "a|b"], [["정상", "1.00"], ["background", "–"]])
    assert table == [
        "| class      | a\\|b |",
        "| ---------- | ---: |",
        "| 정상       | 1.00 |",
        "| background |    – |",
    ]


def test_each_engine_has_a_line_about_its_layers() -> None:
    report = export_report(80.0)
    assert "Layers of the engines" not in text_of_report(report)
    report["rows"][0]["fusion"] = {
        "attention": {"found": 8, "fused": 6},
        "layer_norms": {"found": 30, "fused": 18},
        "reformats": {"count": 12, "time_ms": 0.41, "percent": 6.1},
        "slowest": [{"name": "a", "layer": None, "ms": 1.0}],
        "notes": ["1 compiled kernel moves | data"],
    }
    text = text_of_report(report)
    assert (
        "## Layers of the engines\n\n- PyTorch FP32: 6 of 8 attention blocks and 18 of 30 "
        "LayerNorms fused, 12 reformat layers (0.41 ms, 6 %)\n"
        "- PyTorch FP32: 1 compiled kernel moves \\| data\n"
    ) in text


def test_what_was_not_measured_is_named(tmp_path) -> None:
    report = export_report(80.0)
    report["machine"] = {"device": "Orin", "clocks": {"gpu_max_mhz": 918, "fixed": True}}
    report["rows"] = report["rows"][:1]
    text = text_of_report(report)
    assert list(cells_of(text, "Time of a call")["PyTorch FP32"]) == ["p50 ms", "fps"]
    assert (
        "Not measured: copy in ms, compute ms, copy out ms, p95 ms, p99 ms, fps (events)." in text
    )
    assert "Not measured: W, mJ / image, GPU MHz, °C, throttled." in text
    assert "- clocks: gpu max mhz 918, fixed yes" in text
    assert [name for name in CLASSES if name not in text] == []
    assert json.dumps(report)  # the report itself was not changed
