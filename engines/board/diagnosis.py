"""Why a machine cannot do what its parts could, and what to do about it."""

from __future__ import annotations

import grp
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from engines.board.files import entries, text_of
from engines.board.probe import Package

Advice = Dict[str, str]  # "problem" and "do"

# Any of them means that a driver is loaded: the desktop's, and those of a Jetson up to JetPack 6.
GPU_NODES = ("nvidia[0-9]*", "nvidiactl", "nvhost-ctrl-gpu", "nvmap", "nvgpu/igpu0/ctrl")
# What JetPack brings: Python of its Ubuntu (20.04, 22.04, 24.04) and TensorRT.
JETPACK_PARTS = {
    "5": ("3.8", "TensorRT 8.4 or 8.5"),
    "6": ("3.10", "TensorRT 10.3 (8.6 with JetPack 6.0)"),
    "7": ("3.12", "TensorRT 10.13 or newer"),
}
APT_TENSORRT = "sudo apt-get update && sudo apt-get install python3-libnvinfer"


def numbers(version: Optional[str]) -> Tuple[int, ...]:
    """(10, 3, 0) of "10.3.0.post1"; () of None."""
    found = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(int(part) for part in found.group(0).split(".")) if found else ()


def gpu_nodes(root: Path) -> List[Path]:
    """The GPU's device files that exist."""
    return [path for pattern in GPU_NODES for path in entries(root / "dev", pattern)]


def may_use(path: Path) -> bool:
    """Whether this user may open the device file."""
    return os.access(path, os.R_OK | os.W_OK)


def problems(
    root: Path, machine: Mapping[str, Any], packages: Mapping[str, Package], gpu: Mapping[str, Any]
) -> List[Advice]:
    """The known traps that this machine is in; [] where there is none."""
    jetpack = str(machine.get("jetpack") or "")[:1]
    found = [*_driver(root, machine), *_permission(root), *_stub_library()]
    found += _tensorrt_out_of_sight(root, packages, jetpack)
    found += _numpy_too_new(packages)
    found += [
        _advice(f"{title} does not load: {package.said}", _repair(title, package, jetpack))
        for title, package in packages.items()
        if package.state == "broken"
    ]
    if not found and gpu.get("error") and gpu.get("do") and (gpu_nodes(root) or gpu.get("driver")):
        found.append(_advice(f"CUDA cannot be used: {gpu['error']}", str(gpu["do"])))
    return found


def _advice(problem: str, do: str) -> Advice:
    return {"problem": " ".join(problem.split())[:400], "do": do}


def _driver(root: Path, machine: Mapping[str, Any]) -> List[Advice]:
    if gpu_nodes(root) or machine.get("driver"):
        return []
    in_container = (root / ".dockerenv").exists()
    if machine.get("l4t"):
        return [
            _advice(
                "a Jetson without a GPU below /dev, which is what a container without --runtime "
                "nvidia sees",
                "start the container with --runtime nvidia",
            )
        ]
    if not _nvidia_card(root):
        return []
    if in_container:
        do = "start the container with --gpus all (it needs NVIDIA's container toolkit)"
    else:
        do = "install the driver and restart; on Ubuntu: sudo ubuntu-drivers install"
    return [_advice("an NVIDIA GPU, but its driver is not loaded", do)]


def _nvidia_card(root: Path) -> bool:
    return any(
        text_of(device / "vendor") == "0x10de"
        and (text_of(device / "class") or "").startswith("0x03")
        for device in entries(root / "sys/bus/pci/devices")
    )


def _permission(root: Path) -> List[Advice]:
    denied = [path for path in gpu_nodes(root) if not may_use(path)]
    if not denied:
        return []
    groups = sorted({_group(path) for path in denied} - {"root"}) or ["video"]
    names = ", ".join(f"/{path.relative_to(root)}" for path in denied)
    do = f"sudo usermod -aG {','.join(groups)} $USER, then log out and in again"
    return [_advice(f"no permission to use {names}", do)]


def _group(path: Path) -> str:
    try:
        return grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "video"


def _stub_library() -> List[Advice]:
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    stubs = [f for f in folders if "stubs" in Path(f).parts and entries(Path(f), "libcuda.so*")]
    if not stubs:
        return []
    problem = f"LD_LIBRARY_PATH names {stubs[0]}, whose libcuda.so is a stub for linking only"
    return [_advice(problem, f"take {stubs[0]} out of LD_LIBRARY_PATH")]


def _tensorrt_out_of_sight(
    root: Path, packages: Mapping[str, Package], jetpack: str
) -> List[Advice]:
    if packages["TensorRT"].state != "missing":
        return []
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    versions = apt_tensorrt_pythons(root)
    if here in versions:
        if sys.prefix == sys.base_prefix:
            return []
        return [
            _advice(
                "TensorRT is installed for the system's Python, which this virtual environment "
                "does not see",
                f"set include-system-site-packages = true in {Path(sys.prefix) / 'pyvenv.cfg'}, "
                "or make the environment anew with python3 -m venv --system-site-packages",
            )
        ]
    if versions:
        other = versions[-1]
        return [
            _advice(
                f"TensorRT is installed for Python {other}, and this is Python {here}",
                f"use that Python: python{other} -m venv --system-site-packages ~/riceseg && "
                "~/riceseg/bin/pip install riceseg",
            )
        ]
    return []


def apt_tensorrt_pythons(root: Path) -> List[str]:
    """Python versions that the Debian package of TensorRT was installed for, e.g. ["3.10"]."""
    found = set()
    for folder in entries(root / "usr/lib", "python3*/dist-packages/tensorrt"):
        named = re.fullmatch(r"python(3\.\d+)", folder.parts[-3])
        # python3/dist-packages serves every Python 3; the name of the extension tells which.
        tags = [re.search(r"cpython-3(\d+)", path.name) for path in entries(folder, "*.so")]
        found |= {f"3.{tag.group(1)}" for tag in tags if tag}
        found |= {named.group(1)} if named and not any(tags) else set()
    return sorted(found, key=numbers)


def _numpy_too_new(packages: Mapping[str, Package]) -> List[Advice]:
    tensorrt, numpy = (numbers(packages[title].version) for title in ("TensorRT", "numpy"))
    # https://github.com/NVIDIA/TensorRT/issues/2557: fixed in 8.6.
    if tensorrt and tensorrt < (8, 6) and numpy >= (1, 24):
        problem = f"TensorRT {_dotted(tensorrt)} uses np.bool, which numpy {_dotted(numpy)} lacks"
        return [_advice(problem, "pip install 'numpy<1.24'")]
    return []


def _dotted(version: Tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _repair(title: str, package: Package, jetpack: str) -> str:
    said = package.said or ""
    if "_ARRAY_API" in said or "numpy.core.multiarray" in said or "compiled using NumPy 1" in said:
        return "pip install 'numpy<2': it was built for numpy 1"
    if title == "TensorRT" and jetpack in JETPACK_PARTS:
        return "sudo apt-get install --reinstall python3-libnvinfer"
    if "cannot open shared object file" in said:
        return "install the library that it names, in the same version, or install the package anew"
    return "install the package anew, or remove it if it is not needed"


def install_tensorrt(machine: Mapping[str, Any], cuda: Optional[str]) -> str:
    """The command that brings TensorRT to this machine."""
    jetpack = str(machine.get("jetpack") or "")[:1]
    if jetpack in JETPACK_PARTS:
        python, tensorrt = JETPACK_PARTS[jetpack]
        return (
            f"{APT_TENSORRT} ({tensorrt}, for Python {python} in /usr/bin/python3; a virtual "
            "environment needs --system-site-packages to see it)"
        )
    if machine.get("l4t"):
        return "JetPack 5 or newer: older ones have a Python and a TensorRT that are too old"
    major = numbers(cuda)[:1]
    if major and major < (12,):
        new = "pip install tensorrt-cu12"
        return f"a driver for CUDA 12 or newer (this one is for {cuda}), then: {new}"
    return f"pip install tensorrt-cu{min(major[0], 13)}" if major else "pip install tensorrt"
