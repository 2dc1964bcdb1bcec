"""Latency, rate, memory and power of one predictor's calls in this process."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional

import numpy as np

from engines.errors import ConfigError
from engines.resize import Image, Labels

if TYPE_CHECKING:
    from engines.board import Telemetry

# A power sensor is read a few times a second, so a mean of less time says little.
SHORTEST_TELEMETRY_S = 2.0


@dataclass(frozen=True)
class Benchmark:
    """Latency is of one call with `batch` images, end to end; None is not measured.

    `fps` is mmsegmentation's: images divided by the total time of the calls after the warm-up, each
    of which ends synchronised (tools/analysis_tools/benchmark.py; its batch is 1). `fps_events`
    counts the GPU's work alone, by CUDA events. `peak_memory_mb` is the process's largest resident
    size so far, in 1e6 bytes, with the Python interpreter and the libraries; `gpu_memory_mb` what
    the engine and its buffers hold. `power_w` is the mean of `power_source` while calls followed
    each other without a pause, `energy_mj` what one image took of it. `notes` say what was not as
    it could be, such as a sensor that failed. `threads` None: the runtime chose. `fusion` is
    what an engine's layers tell (`engines.trt.fusion.fusion_from_layers`).
    """

    latency_p50_ms: float
    latency_p95_ms: float
    fps: float
    peak_memory_mb: float
    runs: int
    warmup: int
    threads: Optional[int]
    batch: int
    latency_p99_ms: Optional[float] = None
    latency_mean_ms: Optional[float] = None
    copy_in_ms: Optional[float] = None
    compute_ms: Optional[float] = None
    copy_out_ms: Optional[float] = None
    fps_events: Optional[float] = None
    gpu_memory_mb: Optional[float] = None
    power_w: Optional[float] = None
    power_source: Optional[str] = None
    energy_mj: Optional[float] = None
    gpu_clock_mhz: Optional[float] = None
    temperature_c: Optional[float] = None
    throttled: Optional[bool] = None
    notes: Optional[List[str]] = None
    fusion: Optional[Dict[str, Any]] = None


def benchmark_predictor(
    labels: Callable[[Image], Labels],
    batch: Image,
    *,
    runs: int = 30,
    warmup: int = 5,
    threads: Optional[int] = None,
    telemetry: Optional[Telemetry] = None,
) -> Benchmark:
    """Time `labels(batch)` in this process: `warmup` calls left out, then `runs` calls.

    The call must return finished labels (a GPU synchronised). `threads` is only recorded. With
    `telemetry` the calls go on, untimed, until power was read for SHORTEST_TELEMETRY_S.
    """
    check_counts(runs, warmup)
    for _ in range(warmup):
        labels(batch)
    times_ms: List[float] = []
    with contextlib.nullcontext() if telemetry is None else telemetry:
        began, calls = time.monotonic(), runs
        for _ in range(runs):
            start = time.perf_counter()
            labels(batch)
            times_ms.append((time.perf_counter() - start) * 1000.0)
        while telemetry is not None and time.monotonic() - began < SHORTEST_TELEMETRY_S:
            labels(batch)
            calls += 1
        seconds = time.monotonic() - began
    p50, p95, p99 = np.percentile(times_ms, [50, 95, 99])
    mean_ms = sum(times_ms) / runs
    board = {} if telemetry is None else telemetry_fields(telemetry, seconds, calls * len(batch))
    return Benchmark(
        latency_p50_ms=float(p50),
        latency_p95_ms=float(p95),
        latency_p99_ms=float(p99),
        latency_mean_ms=mean_ms,
        fps=len(batch) * 1000.0 / max(mean_ms, 1e-6),
        peak_memory_mb=peak_memory_mb(),
        runs=runs,
        warmup=warmup,
        threads=threads,
        batch=len(batch),
        **board,
    )


def telemetry_fields(telemetry: Telemetry, seconds: float, images: int) -> Dict[str, Any]:
    """A row's power, energy per image, clock and temperature of `images` done in `seconds`."""
    record = telemetry.record()
    power_w = record.get("power_w")
    return {
        "power_w": power_w,
        "power_source": None if power_w is None else _power_source(record),
        "energy_mj": None if power_w is None else power_w * seconds / images * 1000.0,
        "gpu_clock_mhz": record.get("gpu_clock_mhz"),
        "temperature_c": record.get("temperature_c"),
        "throttled": record.get("throttled"),
        "notes": list(record.get("notes") or []),
    }


def _power_source(record: Mapping[str, Any]) -> Optional[str]:
    """A module's input and a graphics card are not the same: what was read, and by what."""
    rails = ", ".join(record.get("power_rails") or [])
    source: Optional[str] = record.get("source")
    return f"{rails} ({source})" if rails and source else rails or source


def check_counts(runs: int, warmup: int) -> None:
    """ConfigError unless that many calls can be timed."""
    if runs < 1 or warmup < 0:
        raise ConfigError(
            f"{runs} runs after {warmup} for warm-up",
            expected="1 or more runs, 0 or more for warm-up",
            do="use --runs 30 --warmup 5",
        )


def peak_memory_mb() -> float:
    """Largest resident size of this process since it was started, in 1e6 bytes."""
    # ru_maxrss survives exec: the child of a process of 600 MB starts at 611 MB, while VmHWM starts
    # at 9 MB (Linux 6.18, tried).
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
