"""Measure latency, rate and peak memory of one predictor, each model in a process of its own.

`python -m engines.benchmark MODEL.onnx` prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Union

import numpy as np

from engines.errors import ConfigError, GraphError, UserError
from engines.resize import Image, Labels


@dataclass(frozen=True)
class Benchmark:
    """Latency is of one call with `batch` images; `fps` counts images: batch * 1000 / mean latency.

    `peak_memory_mb` is the process's largest resident size so far, in 1e6 bytes, with the Python
    interpreter and the libraries. `threads` None: the runtime chose.
    """

    latency_p50_ms: float
    latency_p95_ms: float
    fps: float
    peak_memory_mb: float
    runs: int
    warmup: int
    threads: Optional[int]
    batch: int


def benchmark_predictor(
    labels: Callable[[Image], Labels],
    batch: Image,
    *,
    runs: int = 30,
    warmup: int = 5,
    threads: Optional[int] = None,
) -> Benchmark:
    """Time `labels(batch)` in this process: `warmup` calls left out, then `runs` calls.

    The call must return finished labels (a GPU synchronised). `threads` is only recorded.
    """
    _check_counts(runs, warmup)
    for _ in range(warmup):
        labels(batch)
    times_ms: List[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        labels(batch)
        times_ms.append((time.perf_counter() - start) * 1000.0)
    p50, p95 = np.percentile(times_ms, [50, 95])
    return Benchmark(
        latency_p50_ms=float(p50),
        latency_p95_ms=float(p95),
        fps=len(batch) * 1000.0 / max(sum(times_ms) / runs, 1e-6),
        peak_memory_mb=peak_memory_mb(),
        runs=runs,
        warmup=warmup,
        threads=threads,
        batch=len(batch),
    )


def benchmark_onnx(
    path: Union[str, os.PathLike[str]],
    *,
    runs: int = 30,
    warmup: int = 5,
    threads: Optional[int] = None,
) -> Benchmark:
    """Time a graph on ONNX Runtime in a fresh process, so that the peak memory is its own.

    The input is one image of fixed noise, or as many as the graph's fixed batch.
    Raises GraphError, with the reason, when the graph does not load or run.
    """
    _check_counts(runs, warmup)
    command = [sys.executable, "-m", "engines.benchmark", os.path.abspath(path)]
    command += ["--runs", str(runs), "--warmup", str(warmup)]
    if threads is not None:
        command += ["--threads", str(threads)]
    # The package is found without being installed, and a folder named engines/ where the caller
    # happens to stand is not taken for it.
    parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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
    lines = child.stdout.decode("utf-8", "replace").splitlines()
    try:
        answer = json.loads(lines[-1])
        if child.returncode == 2:
            raise GraphError(answer["got"], expected=answer["expected"], do=answer["do"])
        return Benchmark(**answer)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        said = child.stderr.decode("utf-8", "replace").strip() or "no message"
        raise GraphError(
            f"a benchmark of {Path(path).name!r} that ended with status {child.returncode}: "
            f"{said.splitlines()[-1]}",
            expected="one line of JSON and status 0",
            do="free some memory if the status is -9 (stopped by the system), or try fewer threads",
        ) from error


def _check_counts(runs: int, warmup: int) -> None:
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


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print the Benchmark of one ONNX file as JSON; status 2 and the error as JSON if it fails."""
    from engines.onnx_predictor import OnnxPredictor

    parser = argparse.ArgumentParser(prog="python -m engines.benchmark", description=__doc__)
    parser.add_argument("path", help="ONNX file")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args(arguments)
    try:
        with OnnxPredictor(options.path, threads=options.threads) as predictor:
            shape = (predictor.fixed_batch or 1, *predictor.input_hw, predictor.channels)
            batch = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            result = benchmark_predictor(
                predictor.labels,
                batch,
                runs=options.runs,
                warmup=options.warmup,
                threads=options.threads,
            )
    except UserError as error:
        print(json.dumps({"got": error.got, "expected": error.expected, "do": error.do}))
        return 2
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
