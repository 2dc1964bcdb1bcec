"""Measure latency, rate, memory and power of one predictor, each model in a process of its own.

`python -m engines.speed.benchmark FILE` (.onnx or .engine) prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Type, Union

import numpy as np

from engines.batches import Batch
from engines.errors import (
    ConfigError,
    DeviceError,
    EngineError,
    GraphError,
    InputError,
    UserError,
)
from engines.speed.timing import Benchmark, benchmark_predictor, check_counts, peak_memory_mb

if TYPE_CHECKING:
    from engines.trt.predictor import TrtPredictor

__all__ = [
    "Benchmark",
    "benchmark_engine",
    "benchmark_onnx",
    "benchmark_predictor",
    "peak_memory_mb",
]

# Calls that are split by CUDA events; the events cost time themselves, so they are extra calls.
MOST_SPLIT_CALLS = 100
_ERRORS: Dict[str, Type[UserError]] = {
    kind.__name__: kind for kind in (ConfigError, DeviceError, EngineError, GraphError, InputError)
}


def benchmark_onnx(
    path: Union[str, os.PathLike[str]],
    *,
    runs: int = 30,
    warmup: int = 5,
    threads: Optional[int] = None,
    batch: Optional[int] = None,
) -> Benchmark:
    """Time a graph on ONNX Runtime in a fresh process, so that the peak memory is its own.

    The input is fixed noise: `batch` images, or as many as the graph's fixed batch, or one.
    Raises GraphError, with the reason, when the graph does not load or run, and ConfigError for
    counts that cannot be.
    """
    check_counts(runs, warmup)
    extra = [] if threads is None else ["--threads", str(threads)]
    return _in_a_process(path, runs, warmup, batch, extra)


def benchmark_engine(
    path: Union[str, os.PathLike[str]],
    *,
    runs: int = 30,
    warmup: int = 5,
    batch: Optional[int] = None,
) -> Benchmark:
    """Time an engine file in a fresh process, with the board's power, clock and temperature.

    Latency and fps are of the call that a program makes, image in and labels out; the split into
    copy in, compute and copy out is measured with CUDA events in further calls.
    Raises EngineError for a file that is not for this GPU and TensorRT, DeviceError without a GPU.
    """
    check_counts(runs, warmup)
    return _in_a_process(path, runs, warmup, batch, [])


def _in_a_process(
    path: Union[str, os.PathLike[str]],
    runs: int,
    warmup: int,
    batch: Optional[int],
    extra: Sequence[str],
) -> Benchmark:
    command = [sys.executable, "-m", "engines.speed.benchmark", os.path.abspath(path)]
    command += ["--runs", str(runs), "--warmup", str(warmup), *extra]
    if batch is not None:
        command += ["--batch", str(batch)]
    # The package is found without being installed, and a folder named engines/ where the caller
    # happens to stand is not taken for it.
    parent = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([parent, *([known] if known else [])]),
    }
    child = subprocess.run(
        command,
        cwd=parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return _answer(Path(path), child)


def _answer(path: Path, child: subprocess.CompletedProcess[bytes]) -> Benchmark:
    kind: Type[UserError] = EngineError if _is_engine(path) else GraphError
    lines = child.stdout.decode("utf-8", "replace").splitlines()
    try:
        answer = json.loads(lines[-1])
        if child.returncode == 2:
            kind = _ERRORS.get(answer["kind"], kind)
            raise kind(answer["got"], expected=answer["expected"], do=answer["do"])
        return Benchmark(**answer)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        said = child.stderr.decode("utf-8", "replace").strip() or "no message"
        raise kind(
            f"a benchmark of {path.name!r} that ended with status {child.returncode}: "
            f"{said.splitlines()[-1]}",
            expected="one line of JSON and status 0",
            do="free some memory if the status is -9 (stopped by the system), or try fewer threads",
        ) from error


def _is_engine(path: Path) -> bool:
    return path.suffix == ".engine"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print the Benchmark of one file as JSON; status 2 and the error as JSON if it fails."""
    parser = argparse.ArgumentParser(prog="python -m engines.speed.benchmark", description=__doc__)
    parser.add_argument("path", type=Path, help="ONNX file or engine file")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="of ONNX Runtime")
    parser.add_argument("--batch", type=int, default=None, help="images of one call")
    options = parser.parse_args(arguments)
    try:
        result = _engine_result(options) if _is_engine(options.path) else _onnx_result(options)
    except UserError as error:
        answer = {"got": error.got, "expected": error.expected, "do": error.do}
        print(json.dumps({"kind": type(error).__name__, **answer}))
        return 2
    print(json.dumps(asdict(result)))
    return 0


def _onnx_result(options: argparse.Namespace) -> Benchmark:
    from engines.board import Telemetry, jetson
    from engines.onnx_predictor import OnnxPredictor

    # A Jetson's input rail feeds its CPU too; on a desktop only the GPU's power is known.
    telemetry = Telemetry() if jetson.is_jetson(Path("/")) else None
    with OnnxPredictor(options.path, threads=options.threads) as predictor:
        batch = _noise(predictor, options.batch, predictor.fixed_batch)
        result = benchmark_predictor(
            predictor.labels,
            batch,
            runs=options.runs,
            warmup=options.warmup,
            threads=options.threads,
            telemetry=telemetry,
        )
    return replace(result, gpu_clock_mhz=None)


def _engine_result(options: argparse.Namespace) -> Benchmark:
    from engines.board import Telemetry
    from engines.trt.predictor import TrtPredictor

    with TrtPredictor(options.path) as predictor:
        batch = _noise(predictor, options.batch, predictor.max_batch)
        result = benchmark_predictor(
            predictor.labels,
            batch,
            runs=options.runs,
            warmup=options.warmup,
            telemetry=Telemetry(),
        )
        split = _split_of_calls(predictor, batch, min(options.runs, MOST_SPLIT_CALLS))
        return replace(
            result,
            gpu_memory_mb=predictor.device_memory_bytes() / 1e6,
            notes=[*predictor.notes, *(result.notes or [])],
            **split,
            # Last: an execution context that is profiled must not run while something is timed.
            fusion=predictor.fusion(batch),
        )


def _split_of_calls(predictor: TrtPredictor, batch: Batch, calls: int) -> Dict[str, Any]:
    """Medians of the parts of a call, in ms, and the rate that the GPU's own part would allow."""
    timings = [predictor.timed(batch)[1] for _ in range(calls)]
    compute_ms: List[float] = [timing.compute_ms for timing in timings]
    return {
        "copy_in_ms": float(np.median([timing.copy_in_ms for timing in timings])),
        "compute_ms": float(np.median(compute_ms)),
        "copy_out_ms": float(np.median([timing.copy_out_ms for timing in timings])),
        "fps_events": len(batch) * 1000.0 / max(sum(compute_ms) / calls, 1e-6),
    }


def _noise(predictor: Any, batch: Optional[int], most: Optional[int]) -> Batch:
    """Images (N, H, W, C) of fixed noise, or bands 0..1; N is `batch`, the fixed batch, or 1."""
    fixed: Optional[int] = predictor.fixed_batch
    count = (fixed or 1) if batch is None else batch
    if count < 1 or (fixed is not None and count != fixed) or (most is not None and count > most):
        allowed = f"{fixed}" if fixed is not None else f"1 to {most}" if most else "1 or more"
        raise ConfigError(
            f"a batch of {count} for {predictor.name!r}",
            expected=allowed,
            do="leave --batch out, or export the model with another --batch",
        )
    shape: Tuple[int, ...] = (count, *predictor.input_hw, predictor.channels)
    noise = np.random.default_rng(0)
    if predictor.input_dtype == np.float32:
        return noise.random(shape, dtype=np.float32)
    return noise.integers(0, 256, shape, dtype=np.uint8)


if __name__ == "__main__":
    sys.exit(main())
