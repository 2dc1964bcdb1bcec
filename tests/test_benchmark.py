from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from band_bundles import band_bundle
from tiny_models import bands_model, bundle_document, file_entry, write_document, write_onnx

from engines.errors import ConfigError, GraphError
from engines.reports.report import checked_report, table_markdown
from engines.speed.benchmark import benchmark_onnx, benchmark_predictor, peak_memory_mb
from engines.speed.target import BenchmarkOptions, benchmark_report, benchmark_target


def stepping_clock(monkeypatch: pytest.MonkeyPatch, durations_ms: list[float]) -> None:
    """Make the calls that are timed take these times, one after the other."""
    ticks = [t for i, ms in enumerate(durations_ms) for t in (10.0 * i, 10.0 * i + ms / 1000)]
    clock = iter(ticks)
    monkeypatch.setattr("engines.speed.timing.time.perf_counter", lambda: next(clock))


def test_percentiles_and_rate_are_those_of_the_timed_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1, 2, ..., 20 and 90 ms: the median is the 11th value, 95 % of the way is the 20th, 99 % is
    # 0.8 of the way from there to the last, and the mean is 300 / 21 ms, so 70 calls a second.
    stepping_clock(monkeypatch, [*range(20, 0, -1), 90])
    result = benchmark_predictor(
        lambda batch: batch[..., 0], np.zeros((1, 2, 2, 3), np.uint8), runs=21
    )
    assert result.latency_p50_ms == pytest.approx(11)
    assert result.latency_p95_ms == pytest.approx(20)
    assert result.latency_p99_ms == pytest.approx(20 + 0.8 * 70)
    assert result.latency_mean_ms == pytest.approx(300 / 21)
    assert result.fps == pytest.approx(70)
    assert (result.runs, result.warmup, result.threads, result.batch) == (21, 5, None, 1)


def test_the_rate_counts_images_and_the_latency_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    stepping_clock(monkeypatch, [8.0, 8.0])
    batch = np.zeros((4, 2, 2, 3), np.uint8)
    result = benchmark_predictor(lambda b: b[..., 0], batch, runs=2, warmup=0, threads=3)
    assert result.latency_p50_ms == pytest.approx(8)
    assert result.fps == pytest.approx(500)
    assert (result.batch, result.threads) == (4, 3)


def test_warm_up_calls_are_made_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    stepping_clock(monkeypatch, [1.0, 1.0, 1.0])
    calls: list[int] = []

    def labels(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        return batch[..., 0]

    result = benchmark_predictor(labels, np.zeros((2, 1, 1, 3), np.uint8), runs=3, warmup=7)
    assert calls == [2] * 10
    assert result.warmup == 7


def test_what_a_cpu_has_not_is_not_measured() -> None:
    result = benchmark_predictor(lambda b: b[..., 0], np.zeros((1, 1, 1, 3), np.uint8), runs=1)
    missing = {key for key, value in asdict(result).items() if value is None}
    assert missing == {
        "threads", "copy_in_ms", "compute_ms", "copy_out_ms", "fps_events", "gpu_memory_mb",
        "power_w", "power_source", "energy_mj", "gpu_clock_mhz", "temperature_c", "throttled",
        "notes", "fusion",
    }  # fmt: skip


@pytest.mark.parametrize(("runs", "warmup"), [(0, 5), (-1, 5), (3, -1)])
def test_impossible_counts_are_refused(tmp_path: Path, runs: int, warmup: int) -> None:
    with pytest.raises(ConfigError, match=f"{runs} runs after {warmup} for warm-up"):
        benchmark_predictor(
            lambda batch: batch, np.zeros((1, 1, 1, 3), np.uint8), runs=runs, warmup=warmup
        )
    with pytest.raises(ConfigError, match=f"{runs} runs after {warmup} for warm-up"):
        benchmark_onnx(tmp_path / "any.onnx", runs=runs, warmup=warmup)


def test_peak_memory_grows_by_what_is_written_and_stays_when_it_is_freed() -> None:
    # In a fresh process, because a test session may have held more than this before.
    code = (
        "import numpy as np; from engines.speed.benchmark import peak_memory_mb\n"
        "print(peak_memory_mb()); block = np.ones(200_000_000, np.uint8); print(peak_memory_mb())\n"
        "del block; print(peak_memory_mb())"
    )
    parent = Path(__file__).resolve().parent.parent
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=parent, capture_output=True, check=True
    )
    before, during, after = map(float, child.stdout.split())
    assert 5 < before < 100
    assert during == pytest.approx(before + 200, abs=10)
    assert after == pytest.approx(during, abs=5)


def test_a_graph_is_timed_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = write_onnx(bands_model((8, 8)), tmp_path / "bands.onnx")
    # What this process holds must not count: more than 300 MB here, far less in a fresh one.
    block = np.ones(300_000_000, np.uint8)
    result = benchmark_onnx(path, runs=3, warmup=1, threads=1)
    assert block[-1] == 1
    assert peak_memory_mb() > 300
    assert 20 < result.peak_memory_mb < 250
    assert 0 < result.latency_p50_ms <= result.latency_p95_ms
    assert result.fps > 0
    assert (result.runs, result.warmup, result.threads, result.batch) == (3, 1, 1, 1)


def test_a_graph_with_a_fixed_batch_is_timed_with_it(tmp_path: Path) -> None:
    path = write_onnx(bands_model((8, 8), batch=3), tmp_path / "bands.onnx")
    result = benchmark_onnx(path, runs=1, warmup=0)
    assert (result.batch, result.threads) == (3, None)


def test_a_batch_is_what_was_asked_for_or_refused_with_the_graphs_own(tmp_path: Path) -> None:
    free = write_onnx(bands_model((8, 8), batch="N"), tmp_path / "free.onnx")
    assert benchmark_onnx(free, runs=1, warmup=0, batch=4).batch == 4
    fixed = write_onnx(bands_model((8, 8), batch=3), tmp_path / "fixed.onnx")
    with pytest.raises(ConfigError, match=r"a batch of 4 for 'fixed\.onnx'; expected 3"):
        benchmark_onnx(fixed, runs=1, warmup=0, batch=4)


def test_the_package_is_found_from_any_folder_and_with_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_onnx(bands_model((8, 8)), tmp_path / "bands.onnx")
    # A folder of the same name where the caller stands must not be taken for the package.
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert benchmark_onnx("bands.onnx", runs=1, warmup=0).runs == 1


def test_a_graph_that_does_not_load_gives_its_own_reason(tmp_path: Path) -> None:
    (tmp_path / "wrong.onnx").write_bytes(b"no graph")
    with pytest.raises(GraphError, match=r"got 'wrong\.onnx', which ONNX Runtime .* refuses"):
        benchmark_onnx(tmp_path / "wrong.onnx", runs=1, warmup=0)


def test_a_process_that_dies_is_reported_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(GraphError, match=r"'.*any\.onnx' that ended with status 1: no message"):
        benchmark_onnx(tmp_path / "any.onnx")


def test_the_module_prints_one_line_of_json(tmp_path: Path) -> None:
    path = write_onnx(bands_model((8, 8)), tmp_path / "bands.onnx")
    parent = Path(__file__).resolve().parent.parent
    child = subprocess.run(
        [
            sys.executable,
            "-m",
            "engines.speed.benchmark",
            str(path),
            "--runs",
            "2",
            "--warmup",
            "0",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stderr == ""
    (line,) = child.stdout.splitlines()
    assert json.loads(line)["runs"] == 2


# --- a target


def two_file_bundle(folder: Path) -> Path:
    """A bundle with an fp32 and an int8 file, which are the same graph of 8 x 8 pixels."""
    files = {}
    for key, name in (("fp32", "model.onnx"), ("int8", "model.int8.onnx")):
        path = write_onnx(bands_model((8, 8)), folder / name)
        files[key] = file_entry(path, folder)
    return write_document(bundle_document(hw=(8, 8), files=files), folder)


def test_every_file_of_a_bundle_is_a_row_and_the_report_names_its_classes(tmp_path: Path) -> None:
    folder = two_file_bundle(tmp_path)
    options = BenchmarkOptions(runs=1, warmup=0, threads=1)
    rows = benchmark_target(folder, options=options)
    assert [(row["form"], row["precision"], row["file"]) for row in rows] == [
        ("ONNX FP32", "fp32", "model.onnx"),
        ("ONNX INT8", "int8", "model.int8.onnx"),
    ]
    assert all(row["error"] is None and row["fps"] > 0 and row["threads"] == 1 for row in rows)
    report = checked_report(benchmark_report(folder, rows))
    assert report["classes"] == ["background", "정상", "도열병", "도복"]
    assert report["checkpoint"]["sha256"] == "0" * 64
    assert report["input_hw"] == [8, 8]
    assert report["data"] is None
    assert "| ONNX INT8 | not measured |" in table_markdown(report)


def test_graphs_that_take_bands_are_rows_of_their_own(tmp_path: Path) -> None:
    folder = band_bundle(tmp_path, (8, 8), fused=True)
    rows = benchmark_target(folder, "fp32", options=BenchmarkOptions(runs=1, warmup=0, batch=2))
    assert [(row["form"], row["precision"], row["file"]) for row in rows] == [
        ("ONNX FP32", "fp32", "tiny.onnx"),
        ("ONNX FP32 bands", "fp32", "tiny.bands.onnx"),
    ]
    assert all(row["error"] is None and row["batch"] == 2 and row["fps"] > 0 for row in rows)
    report = checked_report(benchmark_report(folder, rows))
    assert "| ONNX FP32 bands | not measured |" in table_markdown(report)


def test_a_precision_chooses_the_file_of_a_bundle(tmp_path: Path) -> None:
    folder = two_file_bundle(tmp_path)
    (row,) = benchmark_target(folder, "int8", options=BenchmarkOptions(runs=1, warmup=0))
    assert row["file"] == "model.int8.onnx"
    with pytest.raises(ConfigError, match=r"expected one that is there: fp32, int8"):
        benchmark_target(folder, "fp16")


def test_a_graph_alone_and_a_graph_that_fails_are_rows_too(tmp_path: Path) -> None:
    good = write_onnx(bands_model((8, 8)), tmp_path / "good.onnx")
    (row,) = benchmark_target(good, options=BenchmarkOptions(runs=1, warmup=0))
    assert (row["form"], row["precision"]) == ("good.onnx", "as stored")
    assert checked_report(benchmark_report(good, [row]))["classes"] == []
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    (row,) = benchmark_target(tmp_path / "bad.onnx", options=BenchmarkOptions(runs=1, warmup=0))
    assert "which ONNX Runtime" in row["error"]
