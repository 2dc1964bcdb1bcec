"""Will the build fit into memory? A forecast before it starts, and what to do if not.

Measured (docs/results/build_rtx.json, scripts/measure_build.py): TensorRT-RTX 1.7.1 building
SegFormer-B0, B2 and B4 at 512x512 without a GPU, ONNX files of 15, 109 and 256 MB in FP32, on two
x86-64 cores; peak of the process less the 136 MB before: FP32 245, 626, 1380 MB; FP16 (files of
half the size) 219, 462, 964 MB; INT8 257, 480, 1024 MB; INT8 with FP16 261, 536, 1036 MB.
Not measured: TensorRT itself, and any GPU memory. NVIDIA documents two copies of the weights in
host memory, and that timing a layer takes buffers for its inputs, outputs and weights; what the
libraries and kernels take is a guess on the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

from engines.cuda.interface import Cuda
from engines.errors import DeviceError
from engines.trt.api import TensorRt

_MB = 1_000_000

# Host: bytes for each byte of the ONNX file, from the fit of the figures above, rounded up.
_HOST_FACTOR = {"fp32": 5.0, "fp16": 6.5, "int8": 4.5}
_HOST_BASE = {True: 200 * _MB, False: 1_000 * _MB}  # of TensorRT-RTX measured, of TensorRT guessed
_LEAST_WEIGHT_COPIES = 2
# Device, guessed: the context and kernels; a layer's buffers in several variants at once.
_DEVICE_BASE = 500 * _MB
_DEVICE_LAYERS = 4

MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes that a build will take, and the least that it can do with."""

    host: int
    device: int
    least_host: int
    least_device: int


def memory_forecast(
    tensorrt: TensorRt, *, onnx_bytes: int, precision: str, largest_layer: int, gpu: bool
) -> MemoryForecast:
    """`largest_layer` is the bytes of the inputs and outputs of the layer that has most of them."""
    on_gpu = gpu and not tensorrt.is_rtx  # TensorRT-RTX compiles for the GPU when it runs.
    return MemoryForecast(
        host=_HOST_BASE[tensorrt.is_rtx] + round(_HOST_FACTOR[precision] * onnx_bytes),
        device=_DEVICE_BASE + 2 * onnx_bytes + _DEVICE_LAYERS * largest_layer if on_gpu else 0,
        least_host=_LEAST_WEIGHT_COPIES * onnx_bytes,
        least_device=onnx_bytes + largest_layer if on_gpu else 0,
    )


@dataclass(frozen=True)
class FreeMemory:
    """Bytes free now; `device` None where no GPU is used. `shared`: both are the same memory."""

    host: Optional[int]
    device: Optional[int]
    shared: bool


def free_memory(cuda: Optional[Cuda], *, meminfo: Path = MEMINFO) -> FreeMemory:
    """What the machine has free. A board's GPU takes from MemAvailable, as cuMemGetInfo does not
    count the page cache that the system would give up for it.
    """
    host = _available_bytes(meminfo)
    if cuda is None:
        return FreeMemory(host, None, False)
    shared = bool(cuda.info.integrated)
    device = None if shared else int(cuda.free_bytes()[0])
    return FreeMemory(host, device, shared)


def check_memory(forecast: MemoryForecast, free: FreeMemory) -> Tuple[str, Tuple[str, ...]]:
    """A line for the reader, and warnings. DeviceError when even the least does not fit."""
    host, device = forecast.host, forecast.device
    least_host, least_device = forecast.least_host, forecast.least_device
    if free.shared:
        host, device = host + device, 0
        least_host, least_device = least_host + least_device, 0
    warnings = _warnings("memory", host, least_host, free.host)
    warnings += _warnings("GPU memory", device, least_device, free.device)
    parts = [_part("of memory", host, free.host)]
    if device:
        parts.append(_part("of GPU memory", device, free.device))
    return f"forecast: {', '.join(parts)}", warnings


def workspace_bytes(workspace_mb: Optional[int], free: FreeMemory) -> Optional[int]:
    """The limit to set, or None for TensorRT's own.

    That is all of the GPU's memory, which on a board is everything that the system runs in.
    """
    if workspace_mb is not None:
        return workspace_mb * 2**20
    if free.shared and free.host is not None:
        return max(64 * 2**20, free.host // 4)
    return None


def _warnings(kind: str, needed: int, least: int, free: Optional[int]) -> Tuple[str, ...]:
    if free is None or needed <= free:
        return ()
    advice = (
        "close other programs and the desktop (sudo systemctl isolate multi-user.target), add swap "
        "or give a smaller --workspace"
        if kind == "memory"
        else "close other programs on the GPU, or give a smaller --workspace"
    )
    if least > free:
        raise DeviceError(
            f"{_size(free)} of free {kind}",
            expected=f"about {_size(needed)} for this build, and never less than {_size(least)}",
            do=f"{advice}; or build a smaller input size or batch",
        )
    return (
        f"this build may need {_size(needed)} of {kind} and {_size(free)} are free; if it is "
        f"stopped: {advice}",
    )


def _part(kind: str, needed: int, free: Optional[int]) -> str:
    return f"{_size(needed)} {kind}" + ("" if free is None else f" ({_size(free)} free)")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 100 * _MB else f"{count / _MB:.1f} MB"


def _available_bytes(meminfo: Path) -> Optional[int]:
    """MemAvailable in bytes; None where the system does not tell."""
    try:
        text = meminfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemAvailable:" and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def peak_host_bytes() -> Optional[int]:
    """Largest resident size of this process since it started; None where it is not told."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
