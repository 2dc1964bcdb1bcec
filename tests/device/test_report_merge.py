"""Reports of several machines in one table, on the board's Python with numpy alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.errors import BundleError, ConfigError, OutputError
from engines.progress import printable
from engines.reports.merge import (
    detail_columns,
    merged_columns,
    merged_markdown,
    merged_report,
    reports_from_paths,
)
from engines.reports.report import (
    check_writable,
    report_from_file,
    table_markdown,
    write_report_json,
)

ORIN = {
    "device": "Jetson Orin Nano",
    "cpu": "ARMv8",
    "power_mode": "15W",
    "clocks": {"fixed": True, "gpu_max_mhz": 612},
}
RTX = {"device": "GeForce RTX 4090", "cpu": "Ryzen"}
CPU = {"cpu": "Xeon"}


def row(form, **fields):
    return {"form": form, "runtime": "TensorRT 10.3.0", "precision": "fp16", "batch": 1, **fields}


def report(machine, *rows, **fields):
    return {
        "format": "riceseg-report",
        "format_version": 1,
        "name": "demo",
        "classes": ["soil", "crop"],
        "palette": [[0, 0, 0], [0, 200, 0]],
        "checkpoint": {"file": "best.pth", "sha256": "ab" * 32},
        "data": {"folder": "val", "images": 30, "skipped": []},
        "input_hw": [512, 512],
        "machine": machine,
        "rows": list(rows) or [row("TensorRT FP16", miou=70.0, fps=50.0)],
        **fields,
    }


def with_machine(**changes):
    return {**ORIN, **changes}


# --- the merged document


def test_rows_stand_under_their_device_and_power_mode_in_the_order_of_the_reports():
    slow, fast = with_machine(), with_machine(power_mode="MAXN_SUPER")
    merged = merged_report([report(slow), report(RTX), report(fast), report(slow)])
    assert [(g["device"], g["power_mode"]) for g in merged["groups"]] == [
        ("Jetson Orin Nano", "15W"),
        ("GeForce RTX 4090", None),
        ("Jetson Orin Nano", "MAXN_SUPER"),
    ]
    assert [(r["group"], r["report"]) for r in merged["rows"]] == [(0, 0), (0, 3), (1, 1), (2, 2)]


def test_a_device_without_a_name_is_called_by_its_gpu_or_processor():
    machines = [{"gpu": "T4", "cpu": "Xeon"}, {"cpu": "Xeon"}, {}]
    merged = merged_report([report(machine) for machine in machines])
    assert [g["device"] for g in merged["groups"]] == ["T4", "Xeon", "device not recorded"]


def test_the_change_is_against_the_first_row_of_the_same_report():
    first = report(CPU, row("PyTorch", miou=70.0), row("ONNX INT8", miou=69.5))
    second = report(RTX, row("TensorRT FP32", miou=60.0), row("TensorRT INT8", miou=58.0))
    merged = merged_report([first, second])
    assert [r["change"] for r in merged["rows"]] == [0.0, -0.5, 0.0, -2.0]
    assert [r["is_reference"] for r in merged["rows"]] == [True, False, True, False]


def test_classes_come_from_a_report_that_has_them():
    speed_only = report(RTX, classes=[], palette=[])
    merged = merged_report([speed_only, report(ORIN)])
    assert merged["classes"] == ["soil", "crop"]
    assert merged["palette"] == [[0, 0, 0], [0, 200, 0]]
    assert [r["miou"] for r in merged["rows"]] == [70.0, 70.0]


@pytest.mark.parametrize("classes", [["흙", "crop"], ["crop", "soil"]])
def test_reports_of_other_classes_are_not_merged(classes):
    with pytest.raises(ConfigError, match=r"\[soil, crop\] \(2\) in Xeon and .* in GeForce"):
        merged_report([report(CPU), report(RTX, classes=classes)])


def test_no_report_and_no_report_format_are_refused():
    with pytest.raises(ConfigError, match="no report"):
        merged_report([])
    with pytest.raises(BundleError, match=r"'riceseg-comparison', 1\) as format"):
        merged_report([merged_report([report(CPU)])])


def test_reports_are_found_in_files_and_in_folders(tmp_path):
    write_report_json(report(ORIN), tmp_path / "orin")
    write_report_json(report(RTX), tmp_path / "rtx")
    paths = [tmp_path / "orin", tmp_path / "rtx" / "report.json"]
    found, sources = reports_from_paths(paths)
    assert [r["machine"]["device"] for r in found] == ["Jetson Orin Nano", "GeForce RTX 4090"]
    assert sources == [str(path) for path in paths]
    with pytest.raises(BundleError, match=r"report\.json"):
        reports_from_paths([tmp_path])


# --- what is not comparable


def warnings_of(*reports, sources=None):
    return merged_report(reports, sources=sources)["warnings"]


def test_reports_that_may_be_compared_have_no_warning():
    assert warnings_of(report(ORIN), report(ORIN), report(RTX)) == []


def test_another_power_mode_is_said():
    (line,) = warnings_of(report(ORIN), report(with_machine(power_mode="25W")))
    names = "Jetson Orin Nano · 15W beside Jetson Orin Nano · 25W"
    assert line == f"{names}: power mode: 15W against 25W"


def test_machines_of_the_same_settings_are_compared_once():
    other = with_machine(power_mode="25W")
    lines = warnings_of(
        report(ORIN), report(other), report(ORIN), report(other), sources=["a", "b", "c", "d"]
    )
    assert lines == [
        "Jetson Orin Nano · 15W (a), Jetson Orin Nano · 15W (c) beside "
        "Jetson Orin Nano · 25W (b), Jetson Orin Nano · 25W (d): power mode: 15W against 25W"
    ]


def test_an_unknown_power_mode_of_the_same_device_is_said():
    unknown = {key: value for key, value in ORIN.items() if key != "power_mode"}
    (line,) = warnings_of(report(ORIN), report(unknown))
    assert line.endswith("power mode: 15W against not recorded")


def test_free_clocks_are_said_once_for_all_devices_that_have_them():
    free = {"fixed": False, "gpu_max_mhz": 612}
    lines = warnings_of(report(with_machine(clocks=free)), report({**RTX, "clocks": free}))
    assert lines == [
        "clocks are free, figures vary with load and heat: Jetson Orin Nano · 15W, GeForce RTX 4090"
    ]


def test_throttling_names_form_and_device():
    hot = report(ORIN, row("TensorRT FP16", throttled=True), row("TensorRT INT8", throttled=False))
    assert warnings_of(hot) == [
        "throttled while it was measured: TensorRT FP16 on Jetson Orin Nano · 15W"
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"checkpoint": {"file": "best.pth", "sha256": "cd" * 32}},
            "model: checkpoint abababababab (Xeon); checkpoint cdcdcdcdcdcd (GeForce RTX 4090)",
        ),
        (
            {"checkpoint": None},
            "model: checkpoint abababababab (Xeon); checkpoint not recorded (GeForce RTX 4090)",
        ),
        (
            {"data": {"images": 16}},
            "validation images: 30 images (Xeon); 16 images (GeForce RTX 4090)",
        ),
        (
            {"data": {"images": 30, "sha256": "ef" * 32}},
            "validation images: 30 images (Xeon); 30 images, SHA-256 efefefefefef "
            "(GeForce RTX 4090)",
        ),
        ({"data": None}, "validation images: 30 images (Xeon); none (GeForce RTX 4090)"),
        (
            {"input_hw": [512, 1024]},
            "input size: 512 × 512 (Xeon); 512 × 1024 (GeForce RTX 4090)",
        ),
        ({"rows": [row("A", batch=4)]}, "batch: 1 (Xeon); 4 (GeForce RTX 4090)"),
        ({"mode": "slide"}, "test mode: whole (Xeon); slide (GeForce RTX 4090)"),
    ],
)
def test_another_model_data_size_or_batch_is_said(change, line):
    assert warnings_of(report(CPU), report(RTX, **change)) == [line]


# --- the table


def test_the_table_shows_what_was_measured_and_the_warnings_above_it():
    orin = report(
        ORIN,
        row("TensorRT FP16", miou=70.0, agreement=99.95, latency_p50_ms=20.0, latency_p95_ms=21.0,
            fps=50.0, power_w=9.5, energy_mj=190.0, peak_memory_mb=400.0),
        row("TensorRT | INT8", precision="int8", error="no\nmemory"),
    )  # fmt: skip
    other = report(with_machine(power_mode="25W"), row("TensorRT FP16", miou=69.996, fps=80.0))
    text = merged_markdown(merged_report([orin, other]))
    head, table, reason = text.split("\n\n")
    assert head.splitlines() == [
        "> **Not comparable as they are:**",
        ">",
        "> - Jetson Orin Nano · 15W beside Jetson Orin Nano · 25W: power mode: 15W against 25W",
    ]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    headings = [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]]
    assert headings == ["device", "form", "runtime", "precision", "mIoU", "change", "equal %",
                        "p50 ms", "p95 ms", "fps", "memory MB", "W", "mJ / image"]  # fmt: skip
    device, other_device, none = "Jetson Orin Nano · 15W", "Jetson Orin Nano · 25W", "not measured"
    trt = ["TensorRT 10.3.0", "fp16"]
    assert cells[0] == [device, "TensorRT FP16", *trt, "70.00", "–", "99.95", "20.0", "21.0",
                        "50.0", "400", "9.50", "190.0"]  # fmt: skip
    assert cells[2] == [other_device, "TensorRT FP16", *trt, "70.00", "–", none, none, none, "80.0",
                        none, none, none]  # fmt: skip
    assert table.splitlines()[3].startswith(f"| {' ' * 22} | TensorRT \\| INT8 | TensorRT 10.3.0")
    assert reason == "Jetson Orin Nano · 15W, TensorRT \\| INT8: no memory\n"


def test_the_columns_are_straight_where_names_are_korean():
    text = merged_markdown(merged_report([report({"device": "현장 1호"}), report(CPU)]))
    assert text.splitlines() == [
        "| device   | form          | runtime         | precision |  mIoU | change |      equal % |"
        "       p50 ms |       p95 ms |  fps |    memory MB |",
        "| -------- | ------------- | --------------- | --------- | ----: | -----: | -----------: |"
        " -----------: | -----------: | ---: | -----------: |",
        "| 현장 1호 | TensorRT FP16 | TensorRT 10.3.0 | fp16      | 70.00 |      – | not measured |"
        " not measured | not measured | 50.0 | not measured |",
        "| Xeon     | TensorRT FP16 | TensorRT 10.3.0 | fp16      | 70.00 |      – | not measured |"
        " not measured | not measured | 50.0 | not measured |",
    ]


def test_figures_beside_the_main_ones_are_details():
    merged = merged_report(
        [report(ORIN, row("A", gpu_clock_mhz=612.0, macc=80.0, throttled=False))]
    )
    assert [key for _, key, _ in detail_columns(merged)] == ["macc", "gpu_clock_mhz", "throttled"]
    assert "gpu_clock_mhz" not in [key for _, key, _ in merged_columns(merged)]


def test_names_from_outside_are_no_markup_and_no_terminal_commands():
    hostile = "a\x1b[2J`b|c<d>\n# e"
    merged = merged_report([report({"device": hostile}, row(hostile, error=hostile))])
    text = merged_markdown(merged)
    assert "\x1b" not in text
    assert "<d>" not in text
    assert not any(line.startswith("#") for line in text.splitlines())
    assert "a?\\[2J\\`b\\|c&lt;d> # e" in text


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("[x](javascript:alert)", r"\[x\](javascript:alert)"),
        ("![i](http://evil/x.png)", r"\!\[i\](http://evil/x.png)"),
        ("\\![i](x)", r"\\\!\[i\](x)"),
        ("a_b **c** 벼!", r"a_b \*\*c\*\* 벼!"),
    ],
)
def test_links_and_pictures_in_names_are_none_in_the_file_and_plain_on_a_terminal(name, written):
    merged = merged_report([report({"device": "board"}, row(name))])
    assert f"| {written} |" in merged_markdown(merged)
    assert f"| {name} |" in merged_markdown(merged, shown=printable)


# --- one report


def test_a_report_is_written_and_read_back_with_the_figures_of_a_board(tmp_path):
    figures = {
        "latency_p99_ms": 25.0, "copy_in_ms": 0.5, "compute_ms": 18.0, "copy_out_ms": 0.25,
        "fps_events": 55.5, "gpu_memory_mb": 88.0, "power_w": 9.5, "power_source": "VDD_IN",
        "energy_mj": 190.0, "gpu_clock_mhz": 612.0, "temperature_c": 58.0, "throttled": True,
        "notes": ["no CUDA graph"], "fusion": {"layer norms": 16},
    }  # fmt: skip
    path = write_report_json(report(ORIN, row("벼 FP16", **figures)), tmp_path / "새 폴더")
    assert path.name == "report.json"
    assert "벼 FP16" in path.read_text(encoding="utf-8")
    (back,) = report_from_file(path)["rows"]
    assert {key: back[key] for key in figures} == figures
    assert back["latency_mean_ms"] is None


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"throttled": "yes"}, r"'yes' as rows\[0\]\.throttled .*a flag or null"),
        ({"power_w": True}, r"True as rows\[0\]\.power_w .*a number or null"),
        ({"notes": [1]}, r"\[1\] as rows\[0\]\.notes .*texts"),
        ({"fusion": []}, r"\[\] as rows\[0\]\.fusion .*an object or null"),
        ({"latency_p50_ms": -1}, r"-1 as rows\[0\]\.latency_p50_ms .*none below 0"),
        ({"miou": 100.5}, r"100\.5 as rows\[0\]\.miou .*from 0 to 100"),
        ({"agreement": -0.1}, r"-0\.1 as rows\[0\]\.agreement .*from 0 to 100"),
        ({"iou": [5, 101]}, r"\[5, 101\] as rows\[0\]\.iou .*from 0 to 100"),
        ({"power_source": 1}, r"1 as rows\[0\]\.power_source .*a text or null"),
    ],
)
def test_figures_of_a_wrong_kind_are_refused(tmp_path, field, message):
    document = report(ORIN, row("A", **field))
    with pytest.raises(BundleError, match=message):
        write_report_json(document, tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match=message):
        reports_from_paths([tmp_path])


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_have_is_refused_by_its_field(tmp_path, number):
    text = json.dumps(report(ORIN, row("A", miou=70.25))).replace("70.25", number)
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"(nan|inf) as rows\[0\]\.miou of a report"):
        reports_from_paths([tmp_path])


def test_a_missing_report_is_a_matter_of_its_path(tmp_path):
    with pytest.raises(BundleError, match=r"No such file.*do this: check the path"):
        reports_from_paths([tmp_path / "none.json"])


def test_a_folder_for_a_report_is_looked_at_without_being_made(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder")
    check_writable(Path("relative"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place in ("file", "file/sub", "nowhere"):
        with pytest.raises(OutputError, match="not a folder at"):
            check_writable(tmp_path / place)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission to write at"):
        check_writable(tmp_path / "new")


def test_columns_of_a_board_are_shown_where_a_row_has_them():
    plain = table_markdown(report(ORIN, row("A", fps=50.0)))
    assert "p99" not in plain
    assert "throttled" not in plain
    table = table_markdown(
        report(ORIN, row("A", fps=50.0, latency_p99_ms=25.04, throttled=False), row("B"))
    )
    lines = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    first = dict(zip(lines[0], lines[2]))
    second = dict(zip(lines[0], lines[3]))
    assert (first["p99 ms"], first["fps"], first["throttled"]) == ("25.0", "50.0", "no")
    assert (second["p99 ms"], second["throttled"]) == ("not measured", "not measured")
