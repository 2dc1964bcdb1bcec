"""What this machine can build and run, what it cannot, and what to install for that."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from engines.board import diagnosis, machine, nvidia_smi, probe
from engines.board.files import text_of
from engines.board.probe import Package
from engines.progress import printable

FP16_INT8_SINCE = (7, 0)  # compute capability whose FP16 and INT8 TensorRT uses
RTX_SINCE = (7, 5)  # Turing, the oldest that TensorRT-RTX takes


def doctor_record(
    root: Union[str, os.PathLike[str]] = "/", *, device: int = 0, timeout_s: float = 60.0
) -> Dict[str, Any]:
    """Plain JSON: python, machine, gpu, packages, can, install, problems.

    `can` maps engines, rtx_engines, onnx, images and export to {works, with, why}; `install` is a
    list of {for, do}, `problems` one of {problem, do}. Packages and CUDA are tried in processes of
    their own, `timeout_s` for each of the two.
    """
    top = Path(root)
    cuda, silent = _driver_cuda()
    this_machine = machine.machine_record(top, device=device, ask_driver=not silent)
    packages = probe.packages_found(timeout_s=timeout_s)
    gpu = _gpu(top, this_machine, cuda)
    gpu.update(probe.cuda_found(device, timeout_s=timeout_s))
    can = _can(packages, gpu)
    return {
        "riceseg": _riceseg_version(),
        "python": _python(),
        "machine": this_machine,
        "gpu": gpu,
        "packages": {title: package.record() for title, package in packages.items()},
        "can": can,
        "install": _install(can, this_machine, gpu),
        "problems": [*silent, *diagnosis.problems(top, this_machine, packages, gpu)],
    }


def doctor_text(record: Mapping[str, Any]) -> str:
    """The record for a reader: what there is, what works, what to do. Lines end with a newline."""
    sections = [
        ("Machine", _machine_lines(record)),
        ("Packages", [_package_line(t, p) for t, p in record["packages"].items()]),
        ("Works here", [_can_line(title, answer) for title, answer in record["can"].items()]),
        ("Problems", [f"{item['problem']}\n    do: {item['do']}" for item in record["problems"]]),
        ("To install", [f"{item['for']}: {item['do']}" for item in record["install"]]),
    ]
    parts: List[str] = []
    for title, lines in sections:
        if lines:
            rows = [row for line in lines for row in line.split("\n")]
            parts.append("\n".join([title, *(f"  {_row(row)}" for row in rows)]))
    return "\n\n".join(parts) + "\n"


def _row(row: str) -> str:
    return row[: len(row) - len(row.lstrip())] + "".join(
        c if c.isprintable() else "?" for c in row.lstrip()
    )


def _riceseg_version() -> Optional[str]:
    try:
        return importlib.metadata.version("riceseg")
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Dict[str, Any]:
    venv = sys.prefix != sys.base_prefix
    settings = (text_of(Path(sys.prefix) / "pyvenv.cfg") or "").lower().replace(" ", "")
    record: Dict[str, Any] = {
        "version": platform.python_version(),
        "executable": sys.executable,
        "virtual_environment": venv,
    }
    if venv:
        record["system_site_packages"] = "include-system-site-packages=true" in settings
    return record


def _driver_cuda() -> Tuple[Optional[str], List[diagnosis.Advice]]:
    """The driver's CUDA version, and what to do where nvidia-smi hangs, which is asked once."""
    try:
        return nvidia_smi.driver_cuda_version(), []
    except TimeoutError as error:
        do = "run nvidia-smi; if it hangs there too, look at `sudo dmesg` and restart the machine"
        return None, [{"problem": str(error), "do": do}]


def _gpu(root: Path, this_machine: Mapping[str, Any], cuda: Optional[str]) -> Dict[str, Any]:
    gpu = {
        "name": this_machine.get("device") if this_machine.get("driver") else None,
        "compute_capability": this_machine.get("compute_capability"),
        "memory_mb": this_machine.get("gpu_memory_mb"),
        "driver": this_machine.get("driver"),
        "cuda": cuda,
    }
    toolkit = text_of(root / "usr/local/cuda/version.json") or ""
    gpu["cuda_toolkit"] = _quoted_after(toolkit, '"cuda"', '"version"')
    return {key: value for key, value in gpu.items() if value is not None}


def _quoted_after(text: str, *marks: str) -> Optional[str]:
    for mark in marks:
        text = text.partition(mark)[2]
    return text.split('"')[1] if text.count('"') >= 2 else None


def _can(packages: Mapping[str, Package], gpu: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    return {
        "engines": _engines(packages["TensorRT"], gpu),
        "rtx_engines": _rtx_engines(packages["TensorRT-RTX"], gpu),
        "onnx": _any_of(packages, ("ONNX Runtime",)),
        "images": _any_of(packages, ("Pillow", "OpenCV")),
        "export": _export(packages),
    }


def _engines(tensorrt: Package, gpu: Mapping[str, Any]) -> Dict[str, Any]:
    if tensorrt.state != "works":
        return {"works": False, "why": _state_text("TensorRT", tensorrt)}
    title = f"TensorRT {tensorrt.version or '(version unknown)'}"
    if gpu.get("error"):
        return {"works": False, "with": title, "why": f"no GPU to use: {gpu['error']}"}
    capability = diagnosis.numbers(gpu.get("compute_capability"))
    fast = ["fp16", "int8"] if capability >= FP16_INT8_SINCE else []
    return {"works": True, "with": title, "precisions": ["fp32", *fast]}


def _rtx_engines(rtx: Package, gpu: Mapping[str, Any]) -> Dict[str, Any]:
    if rtx.state != "works":
        return {"works": False, "builds": False, "why": _state_text("TensorRT-RTX", rtx)}
    title = f"TensorRT-RTX {rtx.version or '(version unknown)'}"
    answer: Dict[str, Any] = {"works": False, "builds": True, "with": title}
    capability = diagnosis.numbers(gpu.get("compute_capability"))
    if gpu.get("error"):
        return {**answer, "why": f"builds, but no GPU to run on: {gpu['error']}"}
    if capability and capability < RTX_SINCE:
        return {**answer, "why": "builds, but this GPU is older than compute capability 7.5"}
    return {**answer, "works": True, "precisions": ["fp32", "fp16", "int8"]}


def _any_of(packages: Mapping[str, Package], titles: Tuple[str, ...]) -> Dict[str, Any]:
    there = [title for title in titles if packages[title].state == "works"]
    if there:
        named = ", ".join(f"{title} {packages[title].version or ''}".strip() for title in there)
        providers = list(packages[there[0]].providers)
        return {"works": True, "with": named, **({"providers": providers} if providers else {})}
    why = "; ".join(_state_text(title, packages[title]) for title in titles)
    return {"works": False, "why": why}


def _export(packages: Mapping[str, Package]) -> Dict[str, Any]:
    if diagnosis.numbers(platform.python_version()) < (3, 10):
        return {"works": False, "why": "needs Python 3.10 or newer"}
    needed = ("PyTorch", "onnx", "ONNX Runtime")
    lacking = [title for title in needed if packages[title].state != "works"]
    if lacking:
        why = "; ".join(_state_text(title, packages[title]) for title in lacking)
        return {"works": False, "why": why}
    return {"works": True, "with": ", ".join(f"{t} {packages[t].version}" for t in needed)}


def _state_text(title: str, package: Package) -> str:
    return f"{title} is not installed" if package.state == "missing" else f"{title} does not load"


def _install(
    can: Mapping[str, Mapping[str, Any]], this_machine: Mapping[str, Any], gpu: Mapping[str, Any]
) -> List[Dict[str, str]]:
    """Commands for what is missing, not for what is broken; engines only where there is a GPU."""
    there = bool(this_machine.get("l4t") or gpu.get("driver") or not gpu.get("error"))
    wanted: List[Tuple[str, str, bool]] = [
        ("engines", diagnosis.install_tensorrt(this_machine, gpu.get("cuda")), there),
        ("rtx_engines", "pip install tensorrt-rtx", there and not this_machine.get("l4t")),
        ("onnx", "pip install 'riceseg[onnx]'", True),
        ("images", "pip install Pillow", True),
        ("export", "pip install 'riceseg[export]'", not this_machine.get("l4t")),
    ]
    return [
        {"for": _TITLES[key], "do": do}
        for key, do, applies in wanted
        if applies and not can[key]["works"] and "is not installed" in str(can[key].get("why"))
    ]


_TITLES = {
    "engines": "TensorRT engines",
    "rtx_engines": "TensorRT-RTX engines",
    "onnx": "ONNX files",
    "images": "image files",
    "export": "riceseg export",
}


def _machine_lines(record: Mapping[str, Any]) -> List[str]:
    here, gpu, python = record["machine"], record["gpu"], record["python"]
    clocks = here.get("clocks") or {}
    held = {"True": "held (jetson_clocks)", "False": "free; sudo jetson_clocks holds them"}
    where = " in a virtual environment" if python["virtual_environment"] else ""
    l4t = f" (L4T {here['l4t']})" if here.get("l4t") else ""
    pairs = [
        ("riceseg", record.get("riceseg") or "run from its source"),
        ("Python", f"{python['version']}{where}, {python['executable']}"),
        ("system", f"{here['os']}, {here['cpu']}, {here['cores']} cores, {here['memory_gb']} GB"),
        ("device", here.get("device")),
        ("JetPack", f"{here.get('jetpack') or 'unknown'}{l4t}" if l4t else None),
        ("power mode", here.get("power_mode")),
        ("power limit", _with_unit(here.get("power_limit_w"), "W")),
        ("clocks", held.get(str(clocks.get("fixed")))),
        ("GPU clock", _with_unit(clocks.get("gpu_max_mhz"), "MHz at most")),
        ("GPU", _gpu_text(gpu)),
        ("driver", gpu.get("driver")),
        ("CUDA", _cuda_text(gpu)),
    ]
    return [f"{title:<12} {printable(str(value))}" for title, value in pairs if value]


def _with_unit(value: Any, unit: str) -> Optional[str]:
    return f"{value:g} {unit}" if isinstance(value, (int, float)) else None


def _gpu_text(gpu: Mapping[str, Any]) -> str:
    if not gpu.get("name"):
        return f"none ({gpu['error']})" if gpu.get("error") else "unknown"
    capability = gpu.get("compute_capability")
    memory = _with_unit(gpu.get("memory_mb"), "MiB")
    details = [gpu["name"], f"compute capability {capability}" if capability else None, memory]
    return ", ".join(str(detail) for detail in details if detail)


def _cuda_text(gpu: Mapping[str, Any]) -> Optional[str]:
    parts = [
        f"driver up to {gpu['cuda']}" if gpu.get("cuda") else None,
        f"toolkit {gpu['cuda_toolkit']}" if gpu.get("cuda_toolkit") else None,
        f"through {gpu['binding']}" if gpu.get("binding") else None,
    ]
    return ", ".join(part for part in parts if part) or None


def _package_line(title: str, package: Mapping[str, Any]) -> str:
    if package["state"] == "works":
        state = package.get("version") or "found, version unknown"
    else:
        state = "not installed" if package["state"] == "missing" else "does not load"
    return f"{title:<12} {state}"


def _can_line(title: str, answer: Mapping[str, Any]) -> str:
    if answer["works"]:
        extra = answer.get("precisions") or answer.get("providers") or []
        shown = f"yes, {answer['with']}" + (f" / {' '.join(extra)}" if extra else "")
    else:
        shown = f"no: {answer['why']}"
    return f"{_TITLES[title]:<22} {printable(shown)}"
