"""Latency and peak memory of the PyTorch model, in a process of its own.

python -m exporter.benchmark CHECKPOINT --size 512x512 --outputs 3 --runs 20
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from engines.errors import CheckpointError
from engines.speed.benchmark import Benchmark, benchmark_predictor


def benchmark_checkpoint(
    path: Path,
    input_hw: tuple[int, int],
    *,
    num_outputs: int,
    runs: int,
    warmup: int = 5,
    threads: int | None = None,
) -> Benchmark:
    """Time the unrewritten model with its first `num_outputs` outputs, batch 1.

    Preprocessing and argmax are included. `threads` None leaves the number to PyTorch.

    Raises CheckpointError with the child's last line when it does not finish.
    """
    root = str(Path(__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH")
    child = subprocess.run(
        [sys.executable, "-m", "exporter.benchmark", str(path.resolve()),
         "--size", f"{input_hw[0]}x{input_hw[1]}", "--outputs", str(num_outputs),
         "--runs", str(runs), "--warmup", str(warmup),
         *([] if threads is None else ["--threads", str(threads)])],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *([known] if known else [])])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
    )  # fmt: skip
    if child.returncode != 0:
        reason = (child.stderr.strip() or "no message").splitlines()[-1]
        raise CheckpointError(
            f"a PyTorch benchmark that ended with status {child.returncode}: {reason}",
            expected="status 0",
            do="free some memory, or choose a smaller --size",
        )
    return Benchmark(**json.loads(child.stdout.splitlines()[-1]))


def main() -> None:
    import torch

    from exporter.architectures.description import Hints
    from exporter.checkpoint import state_dict_from_checkpoint
    from exporter.detect import model_from_state_dict
    from exporter.onnx_graph import GraphSpec, ImageToLabels
    from exporter.torch_predictor import TorchPredictor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--size", required=True)
    parser.add_argument("--outputs", type=int, required=True)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    h, w = (int(side) for side in args.size.split("x"))
    # Not load_model: neither class names nor normalisation, which options may give, change times.
    tensors = state_dict_from_checkpoint(args.checkpoint).tensors
    net, found = model_from_state_dict(tensors, hints=Hints(keep_outputs=args.outputs))
    channels = found.in_channels
    spec = GraphSpec((h, w), mean=(127.5,) * channels, std=(64.0,) * channels)
    image = np.random.default_rng(0).integers(0, 256, (1, h, w, channels), dtype=np.uint8)
    predictor = TorchPredictor(ImageToLabels(net, spec).eval())
    result = benchmark_predictor(
        predictor.labels,
        image,
        runs=args.runs,
        warmup=args.warmup,
        threads=torch.get_num_threads(),
    )
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
