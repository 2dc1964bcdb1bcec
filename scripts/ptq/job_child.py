"""The child's side of a job: any Python with numpy, that of another tool's venv too."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.speed.timing import peak_memory_mb


@dataclass(frozen=True)
class Job:
    """One graph to be quantized.

    onnx, out: paths of the float graph and of the one to write. input_name: of the image.
    images: (N, H, W, C) uint8 at the network's size, mapped from a file. options: see `Row`.
    """

    onnx: str
    out: str
    input_name: str
    images: np.ndarray[Any, Any]
    options: dict[str, Any]


def run_job(quantize: Callable[[Job], None]) -> None:
    """Do the job that the command line's JSON file describes and write its result beside it.

    seconds: of the call alone, imports left out. peak_mb: of the whole process, in 1e6 bytes.
    """
    path = Path(sys.argv[1])
    fields = json.loads(path.read_text(encoding="utf-8"))
    images = np.load(fields.pop("images"), mmap_mode="r")
    started = time.perf_counter()
    quantize(Job(images=images, **fields))
    result = {"seconds": time.perf_counter() - started, "peak_mb": peak_memory_mb()}
    path.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")
