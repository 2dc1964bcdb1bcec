"""What building an engine takes: time and peak memory, with TensorRT-RTX, without a GPU.

    pip install tensorrt-rtx
    .venv/bin/python scripts/measure_build.py --out docs/results/build_rtx.json

SegFormer-B0, B2 and B4 with random weights at 512x512, in FP32, FP16, INT8 and INT8 with its rest
in FP16; each build in a process of its own. The forecast in engines/trt/memory.py rests on these
figures. They say nothing about TensorRT itself and nothing about GPU memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.fp16 import fp16_onnx_from_onnx
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from engines.board.machine import machine_record, package_versions
from exporter.architectures.segformer import Segformer, SegformerShape
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx

ROOT = Path(__file__).resolve().parent.parent
VARIANTS: dict[str, tuple[tuple[int, int, int, int], tuple[int, int, int, int], int]] = {
    "segformer-b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "segformer-b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "segformer-b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
}
FORMS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int8_fp16": "int8"}  # form: --precision
BUILD = """
import json, sys
from pathlib import Path
from engines.speed.timing import peak_memory_mb
from engines.trt.api import load_tensorrt
from engines.trt.build import BuildOptions, engine_from_onnx
tensorrt = load_tensorrt(rtx=True)
before = peak_memory_mb()
options = BuildOptions(precision=sys.argv[2], rtx=True)
record = engine_from_onnx(Path(sys.argv[1]), Path(sys.argv[1]).with_suffix(".engine"), options)
print(json.dumps({
    "seconds": round(record.seconds, 2),
    "before_mb": round(before),
    "peak_mb": round(peak_memory_mb()),
    "onnx_mb": round(Path(sys.argv[1]).stat().st_size / 1e6, 1),
    "engine_mb": round(record.engine_bytes / 1e6, 1),
    "tensorrt": str(tensorrt),
}))
"""


def graphs_of(name: str, folder: Path) -> dict[str, Path]:
    """The graph of a variant in every form."""
    embed_dims, depths, head = VARIANTS[name]
    torch.manual_seed(0)
    shape = SegformerShape(
        embed_dims=embed_dims,
        depths=depths,
        num_heads=(1, 2, 5, 8),
        sr_ratios=(8, 4, 2, 1),
        mlp_ratios=(4, 4, 4, 4),
        in_channels=3,
        num_outputs=6,
        head_channels=head,
        head_kind="mmsegmentation",
    )
    spec = GraphSpec(input_hw=(512, 512), mean=(123.675, 116.28, 103.53), std=(58.4, 57.1, 57.4))
    paths = {form: folder / f"{name}.{form}.onnx" for form in FORMS}
    traced = folder / "traced.onnx"
    onnx_from_model(rewritten_for_export(Segformer(shape).eval()), spec, traced, num_outputs=6)
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    simplify_onnx(traced, paths["fp32"], batch=image[None])
    fp16_onnx_from_onnx(paths["fp32"], paths["fp16"])
    # Time and memory of a build do not depend on the ranges; one noise image gives some.
    ranges = ranges_from_images(paths["fp32"], [image], method="minmax")
    int8_onnx_from_ranges(paths["fp32"], ranges, paths["int8"])
    fp16_onnx_from_onnx(paths["int8"], paths["int8_fp16"])
    return paths


def built(path: Path, precision: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(path), precision],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            for form, path in graphs_of(name, Path(folder)).items():
                rows.append({"model": name, "form": form, **built(path, FORMS[form])})
                print(json.dumps(rows[-1]), flush=True)
    if options.out is not None:
        record = {
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine_record(),
            "versions": package_versions(),
            "input_hw": [512, 512],
            "rows": rows,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
