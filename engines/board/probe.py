"""Which packages load here, and what CUDA says, each asked in a process of its own.

A binding for another driver may crash the interpreter, and one that waits for a GPU may hang;
neither must take the caller with it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from engines.board.files import stop_group

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
_CUDA_KINDS = (
    *((key, str) for key in ("binding", "name", "compute_capability", "cuda", "error", "do")),
    ("memory_mb", int),
    ("integrated", bool),
)
_NO_ANSWER = "prints over the answer to whether it loads"


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
    try:
        for title, (modules, distributions) in PROBED.items():
            if _nowhere(modules):
                found[title] = Package("missing")
            elif title in NOT_IMPORTED:
                found[title] = Package("works", version=_version(distributions))
            else:
                question = json.dumps([sys.path, modules, distributions])
                started[title] = _child(_PACKAGE_CODE, question)
        deadline = time.monotonic() + timeout_s
        found.update({t: _package(_answer(child, deadline)) for t, child in started.items()})
    except BaseException:  # Ctrl-C does not reach them: they are in groups of their own
        for child in started.values():
            stop_group(child)
        raise
    return {title: found[title] for title in PROBED}


def _package(answer: Dict[str, Any]) -> Package:
    if "error" in answer:
        return Package("broken", said=str(answer["error"]))
    state = answer.get("state")
    if state not in ("works", "missing", "broken"):
        return Package("broken", said=_NO_ANSWER)
    texts = {key: str(answer[key]) for key in ("version", "path", "said") if answer.get(key)}
    providers = answer.get("providers")
    names = tuple(map(str, providers)) if isinstance(providers, list) else ()
    return Package(state, providers=names, **texts)


def cuda_found(device: int = 0, *, timeout_s: float = 60.0) -> Dict[str, Any]:
    """What `engines.cuda` opens: binding, name, memory_mb, compute_capability, cuda, integrated.

    Or error, and with it `do` where the way out is known.
    """
    parent = str(Path(__file__).resolve().parent.parent.parent)
    child = _child(_CUDA_CODE, json.dumps([[parent, *sys.path], device]))
    try:
        answer = _answer(child, time.monotonic() + timeout_s)
    except BaseException:
        stop_group(child)
        raise
    known = {key: answer[key] for key, kinds in _CUDA_KINDS if isinstance(answer.get(key), kinds)}
    return known if "error" in known or "name" in known else {"error": _NO_ANSWER}


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
        stop_group(child)
        return {"error": "does not answer (stopped while it was being loaded)"}
    lines = output.decode("utf-8", "replace").splitlines()
    answers = [line[len(_MARK) :] for line in lines if line.startswith(_MARK)]
    if child.returncode == 0 and answers:
        # What is loaded there may print anything, at its end too.
        try:
            answer = json.loads(answers[-1])
        except (ValueError, RecursionError):
            answer = None
        return answer if isinstance(answer, dict) else {"error": _NO_ANSWER}
    return {"error": f"crashes Python ({_ended(child.returncode)})"}


def _ended(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    names: List[str] = [s.name for s in signal.Signals if s == -status]
    return names[0] if names else f"signal {-status}"
