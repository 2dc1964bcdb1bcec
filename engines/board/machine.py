"""The machine and the versions that a number was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, Dict, Optional, Union

from engines.board import jetson, nvidia_smi
from engines.board.files import text_of

PACKAGES = ("riceseg", "torch", "onnx", "onnxruntime", "onnxsim", "numpy")


def machine_record(
    root: Union[str, os.PathLike[str]] = "/",
    *,
    gpu_name: Optional[str] = None,
    device: int = 0,
    ask_driver: bool = True,
) -> Dict[str, Any]:
    """What it is and how it is set; a key that is not known is left out.

    Always: cpu, cores (usable), memory_gb (1e9 bytes), os, python. On a Jetson: device, l4t,
    jetpack, power_mode, power_mode_id, clocks (MHz, and `fixed`: jetson_clocks is on). With a
    desktop GPU, CUDA's number `device`: device (its name, or `gpu_name` where CUDA has told it),
    driver, gpu_memory_mb (2**20 bytes), compute_capability, power_limit_w, clocks; without them
    where the driver is not to be asked.
    """
    top = Path(root)
    record: Dict[str, Any] = {
        "cpu": _cpu_name(top),
        "cores": _usable_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
    found: Dict[str, Any] = {}
    if jetson.is_jetson(top):
        found = _jetson_record(top)
    elif ask_driver:
        found = _desktop_record(device)
    if gpu_name and not jetson.is_jetson(top):
        found["device"] = gpu_name
    record.update((key, value) for key, value in found.items() if value not in (None, {}))
    return record


def package_versions() -> Dict[str, str]:
    """Versions of Python and of the packages that a figure may depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _jetson_record(root: Path) -> Dict[str, Any]:
    l4t = jetson.l4t_version(root)
    mode, number = jetson.power_mode(root)
    return {
        "device": jetson.model_name(root),
        "l4t": l4t,
        "jetpack": jetson.jetpack_version(root, l4t),
        "power_mode": mode if mode is not None or number is None else f"mode {number}",
        "power_mode_id": number,
        "clocks": jetson.clocks(root),
    }


def _desktop_record(device: int) -> Dict[str, Any]:
    gpu = nvidia_smi.gpu_record(device)
    clock = gpu.get("max_clock_mhz")
    return {
        "device": gpu.get("name"),
        "driver": gpu.get("driver"),
        "gpu_memory_mb": gpu.get("memory_mb"),
        "compute_capability": gpu.get("compute_capability"),
        "power_limit_w": gpu.get("power_limit_w"),
        "clocks": {} if clock is None else {"gpu_max_mhz": clock},
    }


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name(root: Path) -> str:
    for line in (text_of(root / "proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
