"""How long each kernel took, kept between builds: a second build of a similar graph is short.

The file is TensorRT's own, as trtexec's --timingCacheFile reads and writes it. It belongs to one
GPU and one version; TensorRT checks that and its own checksum.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

from engines.cache_folder import cache_folder
from engines.cuda.interface import GpuInfo
from engines.trt.api import TensorRt
from engines.trt.places import replace_file

MAX_BYTES = 2**30

Warn = Callable[[str], None]


def default_timing_cache(tensorrt: TensorRt, gpu: GpuInfo) -> Path:
    """cache folder/timing/GPU-smNN-trtVERSION.cache."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-") or "gpu"
    capability = "".join(str(part) for part in gpu.compute_capability)
    file = f"{name}-sm{capability}-trt{tensorrt.version_text()}.cache"
    return cache_folder() / "timing" / file


def load_timing_cache(config: Any, path: Path, warn: Warn) -> None:
    """Give the builder what `path` holds; nothing of it where TensorRT does not take it.

    A cache is no result: whatever is wrong with it is a warning, and it is replaced afterwards.
    """
    data = b""
    try:
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            data = path.read_bytes()
        elif path.exists():
            warn(f"timing cache {str(path)!r} is no file of at most 1 GiB; starting an empty one")
    except OSError as error:
        warn(f"timing cache {str(path)!r} cannot be read ({error.strerror}); starting an empty one")
    if data and _taken(config, data):
        return
    if data:
        warn(
            f"timing cache {str(path)!r} is damaged or of another GPU or version; "
            "starting an empty one"
        )
    _taken(config, b"")


def save_timing_cache(config: Any, path: Path, warn: Warn) -> None:
    """Write what the builder knows now to `path`, in one step; a failure is a warning."""
    cache = config.get_timing_cache()
    memory = None if cache is None else cache.serialize()
    if memory is None:
        warn(f"timing cache {str(path)!r} was not written: TensorRT gave none")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, [bytes(memory)])
    except OSError as error:
        warn(f"timing cache {str(path)!r} was not written: {error.strerror}")


def _taken(config: Any, data: bytes) -> bool:
    cache = config.create_timing_cache(data)
    # ignore_mismatch False: times of another GPU would choose wrong kernels.
    return cache is not None and bool(config.set_timing_cache(cache, False))
