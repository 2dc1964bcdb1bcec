"""Timing an engine and a whole bundle, on the made-up GPU."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from fake_cuda import RecordingCuda
from tiny_engines import engine_file, tensorrt_on

import engines.board
import engines.trt.predictor
from engines.errors import ConfigError, DeviceError, EngineError
from engines.reports.report import checked_report
from engines.speed import benchmark, timing
from engines.speed import target as benchmark_target
from engines.speed.target import BenchmarkOptions, benchmark_report
from engines.speed.timing import Benchmark
from engines.trt.predictor import TrtPredictor

SEEN = {
    "power_w": 10.0, "gpu_clock_mhz": 612.0, "temperature_c": 51.0, "throttled": False,
    "power_rails": ["VDD_IN"], "source": "ina3221", "notes": ["tegrastats: not found"],
}  # fmt: skip


class MadeTelemetry:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def record(self):
        return SEEN


@pytest.fixture
def gpu(monkeypatch):
    """A made-up GPU with TensorRT 10.3, and a board that draws 10 W."""
    cuda = RecordingCuda()
    opened = functools.partial(TrtPredictor, cuda=cuda, tensorrt=tensorrt_on(cuda))
    monkeypatch.setattr(engines.trt.predictor, "TrtPredictor", opened)
    monkeypatch.setattr(engines.board, "Telemetry", MadeTelemetry)
    monkeypatch.setattr(timing, "SHORTEST_TELEMETRY_S", 0.0)
    return cuda


def answer(capsys, *arguments):
    code = benchmark.main([str(argument) for argument in arguments])
    return code, json.loads(capsys.readouterr().out)


def test_an_engine_is_timed_with_its_parts_and_the_board(gpu, tmp_path, capsys):
    code, found = answer(capsys, engine_file(tmp_path), "--runs", 4, "--warmup", 1)
    assert code == 0
    assert (found["runs"], found["warmup"], found["batch"], found["threads"]) == (4, 1, 1, None)
    # The made-up GPU takes 10 ms for a kernel, so 100 images a second.
    assert found["compute_ms"] == pytest.approx(10.0)
    assert found["fps_events"] == pytest.approx(100.0)
    assert found["copy_in_ms"] >= 0
    assert found["copy_out_ms"] >= 0
    assert found["gpu_memory_mb"] > 0
    assert found["latency_p50_ms"] <= found["latency_p95_ms"] <= found["latency_p99_ms"]
    assert (found["power_w"], found["power_source"]) == (10.0, "VDD_IN (ina3221)")
    assert found["energy_mj"] > 0
    assert (found["temperature_c"], found["throttled"]) == (51.0, False)
    assert found["notes"][-1] == "tegrastats: not found"
    assert gpu.leaks() == []


def test_the_layers_are_audited_after_all_that_is_timed(gpu, tmp_path, capsys):
    plan = {"layers": [{"Name": "a", "LayerType": "Reformat"}], "times": [["a", 2.0]]}
    found = answer(capsys, engine_file(tmp_path, **plan), "--runs", 2, "--warmup", 0)[1]
    assert found["fusion"]["reformats"] == {"count": 1, "time_ms": 2.0, "percent": 100.0}
    # Once for the predictor, and once more, after the last launch, for the audit.
    names = gpu.names("create_context", "launch")
    assert names.count("create_context") == 2
    assert names[-1] == "create_context"


def test_an_audit_that_fails_costs_no_figure(gpu, tmp_path, capsys):
    code, found = answer(capsys, engine_file(tmp_path, refuses=["inspect"]), "--runs", 1)
    assert (code, found["compute_ms"]) == (0, pytest.approx(10.0))
    assert found["fusion"]["notes"] == [
        "the layers are not told: an engine without an engine inspector"
    ]


def test_a_free_batch_is_what_was_asked_for_and_a_fixed_one_what_it_is(gpu, tmp_path, capsys):
    free = engine_file(tmp_path, "free.engine", batch=(1, 1, 8))
    assert answer(capsys, free, "--runs", 1, "--batch", 8)[1]["batch"] == 8
    assert answer(capsys, free, "--runs", 1)[1]["batch"] == 1
    fixed = engine_file(tmp_path, "fixed.engine", batch=2)
    assert answer(capsys, fixed, "--runs", 1)[1]["batch"] == 2
    for path, batch, expected in ((free, 9, "1 to 8"), (free, 0, "1 to 8"), (fixed, 1, "2")):
        code, found = answer(capsys, path, "--runs", 1, "--batch", batch)
        assert (code, found["kind"], found["expected"]) == (2, "ConfigError", expected)


def test_energy_is_the_power_over_the_time_of_all_images():
    # 12 images in 0.6 s at 10 W: 6 J, so 0.5 J each.
    fields = timing.telemetry_fields(MadeTelemetry(), 0.6, 12)
    assert fields["energy_mj"] == pytest.approx(500.0)


def test_calls_go_on_until_the_power_was_read_for_long_enough(monkeypatch):
    now = [0.0]

    def labels(batch):
        now[0] += 0.5
        return batch[..., 0]

    monkeypatch.setattr("engines.speed.timing.time.monotonic", lambda: now[0])
    batch = np.zeros((2, 1, 1, 3), np.uint8)
    result = timing.benchmark_predictor(labels, batch, runs=1, warmup=1, telemetry=MadeTelemetry())
    # 0.5 s of warm-up, one timed call, then three more until 2 s are over: 4 calls in all,
    # 8 images in 2 s at 10 W are 2500 mJ each.
    assert now[0] == 2.5
    assert result.runs == 1
    assert result.energy_mj == pytest.approx(2500.0)


def test_without_a_power_sensor_power_and_energy_are_not_measured(monkeypatch):
    monkeypatch.setitem(SEEN, "power_w", None)
    fields = timing.telemetry_fields(MadeTelemetry(), 1.0, 10)
    assert (fields["power_w"], fields["energy_mj"], fields["power_source"]) == (None, None, None)
    assert fields["temperature_c"] == 51.0


def test_an_engine_of_another_gpu_is_an_engine_error_of_the_child(gpu, tmp_path, capsys):
    path = engine_file(tmp_path, header={"gpu_name": "Xavier", "compute_capability": (7, 2)})
    code, found = answer(capsys, path)
    assert (code, found["kind"]) == (2, "EngineError")


def test_the_childs_error_keeps_its_kind(tmp_path, monkeypatch):
    path = tmp_path / "damaged.engine"
    path.write_bytes(b"\x02")
    with pytest.raises(EngineError, match=r"'damaged\.engine' that ends after 1 bytes"):
        benchmark.benchmark_engine(path, runs=1)
    # Neither a driver nor TensorRT is there, or the engine is not for this GPU.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises((DeviceError, EngineError)):
        benchmark.benchmark_engine(engine_file(tmp_path), runs=1)
    with pytest.raises(ConfigError, match="0 runs"):
        benchmark.benchmark_engine(path, runs=0)


# --- a target


def measured(ms):
    return Benchmark(ms, ms, 1000 / ms, 10.0, runs=1, warmup=0, threads=None, batch=1)


def test_an_engine_file_gives_a_row_with_what_it_is(tmp_path, monkeypatch):
    asked = {}

    def timed(path, **counts):
        asked.update(counts, path=path)
        return measured(5.0)

    monkeypatch.setattr(benchmark_target, "benchmark_engine", timed)
    path = engine_file(tmp_path, header={"dla": 0})
    (row,) = benchmark_target.benchmark_target(
        path, options=BenchmarkOptions(runs=7, warmup=2, batch=1)
    )
    assert asked == {"path": path, "runs": 7, "warmup": 2, "batch": 1}
    assert (row["form"], row["precision"]) == ("TensorRT FP16 DLA 0", "fp16")
    assert row["runtime"] == "TensorRT 10.3.0"
    assert row["file"] == "tiny.engine"
    assert row["file_mb"] == path.stat().st_size / 1e6
    assert (row["latency_p50_ms"], row["error"]) == (5.0, None)
    document = checked_report(benchmark_report(path, [row]))
    assert document["name"] == "tiny"
    assert document["machine"]["cpu"]
    assert document["rows"][0]["fps"] == 200.0


def test_a_form_that_fails_is_a_row_with_its_reason(tmp_path, monkeypatch):
    def failing(path, **_):
        raise DeviceError("no GPU", expected="one", do="find one")

    monkeypatch.setattr(benchmark_target, "benchmark_engine", failing)
    (row,) = benchmark_target.benchmark_target(engine_file(tmp_path))
    assert row["error"] == "got no GPU; expected one; do this: find one"
    assert "fps" not in row


def forms_of(folder, monkeypatch, runs_on):
    """Rows of a made-up bundle of engines; those for the GPU `runs_on` run, damaged ones do not."""

    def timed(path, **_):
        if path.name.startswith(runs_on):
            return measured(5.0)
        raise EngineError(path.name, expected="one for this GPU", do="build it")

    forms = [benchmark_target_form(path) for path in sorted(folder.glob("*.engine"))]
    monkeypatch.setattr(benchmark_target, "benchmark_engine", timed)
    monkeypatch.setattr(benchmark_target, "forms_from_target", lambda *_: forms)
    return benchmark_target.benchmark_target(folder)


def benchmark_target_form(path):
    from engines.speed.forms import _engine_form_or_unknown

    return _engine_form_or_unknown(path)


def test_engines_of_other_boards_are_left_out_where_one_of_the_kind_ran(tmp_path, monkeypatch):
    engine_file(tmp_path, "orin16.engine")
    engine_file(tmp_path, "rtx16.engine", header={"gpu_name": "RTX"})
    engine_file(tmp_path, "rtx8.engine", header={"gpu_name": "RTX", "precision": "int8"})
    (tmp_path / "zdamaged.engine").write_bytes(b"\x00")
    rows = forms_of(tmp_path, monkeypatch, "orin")
    assert [(row["file"], row["error"] is None) for row in rows] == [
        ("orin16.engine", True),
        ("rtx8.engine", False),
        ("zdamaged.engine", False),
    ]
    assert rows[2]["form"] == "zdamaged.engine"


def test_a_fitting_engine_that_failed_stays_beside_one_that_ran(tmp_path, monkeypatch):
    engine_file(tmp_path, "a.engine")
    engine_file(tmp_path, "b.engine")
    rows = forms_of(tmp_path, monkeypatch, "a")
    assert [(row["file"], row["error"] is None) for row in rows] == [
        ("a.engine", True),
        ("b.engine", False),
    ]


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("missing.engine", None, "missing.engine, which does not exist"),
        ("notes.txt", None, "notes.txt, which is none of these"),
        ("model.onnx", "int8", "precision 'int8' for an ONNX file"),
        ("tiny.engine", "int8", "precision 'int8' of .*expected one that is there: fp16"),
    ],
)
def test_what_cannot_be_timed_is_a_config_error(tmp_path, name, precision, message):
    engine_file(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match=message):
        benchmark_target.benchmark_target(tmp_path / name, precision)
