"""Which packages load here, and what CUDA says, each asked in a process of its own.

A binding for another driver may crash the interpreter, and one that waits for a GPU may hang;
neither must take the caller with it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

# Title -> modules to try, and distributions whose version counts where the module has none.
PROBED: Dict[str, Tuple[Tuple[str, ...], Tuple[str, ...]]] = {
    "numpy": (("numpy",), ("numpy",)),
    "TensorRT": (("tensorrt",), ("tensorrt",)),
    "TensorRT-RTX": (("tensorrt_rtx",), ("tensorrt_rtx",)),
    "ONNX Runtime": (("onnxruntime",), ("onnxruntime",)),
    "cuda-python": (("cuda.bindings.driver", "cuda.cuda"), ("cuda-bindings", "cuda-python")),
    "pycuda": (("pycuda.driver",), ("pycuda",)),
    "Pillow": (("PIL.Image",), ("Pillow",)),
    "OpenCV": (("cv2",), ("opencv-python", "opencv-python-headless")),
    "nvidia-ml-py": (("pynvml",), ("nvidia-ml-py", "pynvml")),
    "jetson-stats": (("jtop",), ("jetson-stats",)),
    "PyTorch": (("torch",), ("torch",)),
    "onnx": (("onnx",), ("onnx",)),
}
# Only needed for the export, so it is enough that they are there: importing torch takes seconds.
NOT_IMPORTED = ("PyTorch", "onnx")

_MARK = "riceseg-probe "
_PACKAGE_CODE = """
import importlib, importlib.metadata, json, sys, warnings
warnings.simplefilter("ignore")
sys.path[:], modules, names = json.loads(sys.argv[1])
answer = {"state": "missing"}
for name in modules:
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "?") in (
            name, *[name.rpartition(".")[0], name.partition(".")[0]])
        if not absent:
            answer = {"state": "broken", "said": "%s: %s" % (type(error).__name__, error)}
        continue
    top = sys.modules[name.partition(".")[0]]
    version = getattr(module, "__version__", None) or getattr(top, "__version__", None)
    for distribution in names:
        try:
            version = version or importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            pass
    answer = {"state": "works", "version": version and str(version)}
    answer["path"] = str(getattr(module, "__file__", None) or "")
    if hasattr(module, "get_available_providers"):
        answer["providers"] = list(module.get_available_providers())
    break
print("\\nriceseg-probe " + json.dumps(answer))
"""
_CUDA_CODE = """
import json, sys
sys.path[:], device = json.loads(sys.argv[1])
from engines.errors import UserError
try:
    from engines.cuda import open_cuda
    cuda = open_cuda(device=device)
    info = cuda.info
    answer = {"binding": cuda.binding, "name": info.name, "memory_mb": info.total_bytes // 2**20,
        "compute_capability": "%d.%d" % tuple(info.compute_capability),
        "cuda": "%d.%d" % tuple(info.driver_version), "integrated": bool(info.integrated)}
    cuda.close()
except UserError as error:
    answer = {"error": error.got, "do": error.do}
except Exception as error:
    answer = {"error": "%s: %s" % (type(error).__name__, error)}
print("\\nriceseg-probe " + json.dumps(answer))
"""


@dataclass(frozen=True)
class Package:
    """`state`: "works", "missing" or "broken"; `said`: why it is broken."""

    state: str
    version: Optional[str] = None
    path: Optional[str] = None
    said: Optional[str] = None
    providers: Tuple[str, ...] = ()

    def record(self) -> Dict[str, Any]:
        known = {key: value for key, value in asdict(self).items() if value}
        return {**known, **({"providers": list(self.providers)} if self.providers else {})}


def packages_found(*, timeout_s: float = 60.0) -> Dict[str, Package]:
    """Each of PROBED, all processes at once; one that takes longer than the time is broken."""
    started: Dict[str, subprocess.Popen[bytes]] = {}
    found: Dict[str, Package] = {}
    importlib.invalidate_caches()
    for title, (modules, distributions) in PROBED.items():
        if _nowhere(modules):
            found[title] = Package("missing")
        elif title in NOT_IMPORTED:
            found[title] = Package("works", version=_version(distributions))
        else:
            question = json.dumps([sys.path, modules, distributions])
            started[title] = _child(_PACKAGE_CODE, question)
    deadline = time.monotonic() + timeout_s
    for title, child in started.items():
        answer = _answer(child, deadline)
        providers = tuple(str(name) for name in answer.pop("providers", ()))
        error = answer.pop("error", None)
        found[title] = Package("broken", said=error) if error else Package(**answer)
        if providers:
            found[title] = Package(**{**answer, "providers": providers})
    return {title: found[title] for title in PROBED}


def cuda_found(device: int = 0, *, timeout_s: float = 60.0) -> Dict[str, Any]:
    """What `engines.cuda` opens: binding, name, memory_mb, compute_capability, cuda, integrated.

    Or error, and with it `do` where the way out is known.
    """
    parent = str(Path(__file__).resolve().parent.parent.parent)
    child = _child(_CUDA_CODE, json.dumps([[parent, *sys.path], device]))
    return _answer(child, time.monotonic() + timeout_s)


def _nowhere(modules: Tuple[str, ...]) -> bool:
    # Not importlib.util.find_spec, which also finds what this process has loaded from elsewhere.
    tops = {name.partition(".")[0] for name in modules}
    return all(PathFinder.find_spec(top, sys.path) is None for top in tops)


def _version(distributions: Tuple[str, ...]) -> Optional[str]:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _child(code: str, question: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, question],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what it started itself is stopped with it
    )


def _answer(child: subprocess.Popen[bytes], deadline: float) -> Dict[str, Any]:
    try:
        output, _ = child.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _stop(child)
        return {"error": "does not answer (stopped while it was being loaded)"}
    lines = output.decode("utf-8", "replace").splitlines()
    answers = [line[len(_MARK) :] for line in lines if line.startswith(_MARK)]
    if child.returncode == 0 and answers:
        answer: Dict[str, Any] = json.loads(answers[-1])
        return answer
    return {"error": f"crashes Python ({_ended(child.returncode)})"}


def _stop(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except OSError:
        child.kill()
    child.communicate()


def _ended(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    names: List[str] = [s.name for s in signal.Signals if s == -status]
    return names[0] if names else f"signal {-status}"
