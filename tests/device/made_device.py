"""A made-up board: TensorRT and its GPU are the fakes, and a benchmark gives fixed figures."""

from __future__ import annotations

from pathlib import Path

from tiny_engines import Rig, engine_file

from engines import cuda
from engines.evaluation import device_rows
from engines.images import sha256_of_file
from engines.speed.timing import Benchmark
from engines.trt import api

FIGURES = Benchmark(
    latency_p50_ms=10.0,
    latency_p95_ms=11.0,
    latency_p99_ms=12.0,
    fps=99.0,
    fps_events=125.0,
    copy_in_ms=0.5,
    compute_ms=8.0,
    copy_out_ms=0.25,
    peak_memory_mb=300.0,
    gpu_memory_mb=40.0,
    runs=200,
    warmup=5,
    threads=None,
    batch=1,
    power_w=7.5,
    power_source="VDD_GPU_SOC",
    energy_mj=75.0,
    gpu_clock_mhz=918.0,
    temperature_c=51.0,
    throttled=False,
)


class Device:
    """`engine` puts an engine into the bundle; `timed` lists (SHA-256, runs, warm-up)."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder = folder
        self.timed: list = []
        self.rigs: list = []
        self.during_benchmark = lambda path: None
        monkeypatch.setattr(api, "load_tensorrt", self._load_tensorrt)
        monkeypatch.setattr(cuda, "open_cuda", lambda: self.rigs[-1].cuda)
        monkeypatch.setattr(device_rows, "benchmark_engine", self._benchmark)

    def engine(self, precision: str, *, step: int = 64, header: dict | None = None, **plan) -> Path:
        """An engine built from the bundle's ONNX file of that precision, for this board."""
        onnx = self.folder / f"tiny.{precision}.onnx"
        sha256 = sha256_of_file(onnx)
        return engine_file(
            self.folder / "engines",
            f"{precision}.engine",
            header={"precision": precision, "onnx_sha256": sha256, **(header or {})},
            step=step,
            **plan,
        )

    def leaks(self) -> list:
        return [leak for rig in self.rigs for leak in rig.cuda.leaks()]

    def _load_tensorrt(self, **_):
        self.rigs.append(Rig(self.folder))
        return self.rigs[-1].tensorrt

    def _benchmark(self, path, *, runs, warmup):
        self.timed.append((sha256_of_file(path), runs, warmup))
        self.during_benchmark(path)
        return FIGURES
