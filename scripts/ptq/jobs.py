"""Each tool, and each build, in a process of its own, so that time and memory are its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import ConfigError, GraphError, MissingPackageError
from ptq.rows import MODELOPT, ONNXRUNTIME, RICESEG, Row

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PROGRAMS = {
    RICESEG: "tool_riceseg.py",
    ONNXRUNTIME: "tool_onnxruntime.py",
    MODELOPT: "tool_modelopt.py",
}
MODELOPT_VENV = ".venv-modelopt"
MAKE_VENV = (
    f"python3.12 -m venv {MODELOPT_VENV} && {MODELOPT_VENV}/bin/pip install "
    "-c constraints-modelopt.txt 'nvidia-modelopt[onnx]'"
)
LONGEST = 300  # of an error's text


@dataclass(frozen=True)
class Done:
    """One finished child: what it wrote into result.json, or the last line of its error."""

    result: dict[str, Any]
    error: str | None = None


def python_of(tool: str) -> Path:
    """The interpreter of the tool; ConfigError where ModelOpt's venv was not made."""
    if tool != MODELOPT:
        return Path(sys.executable)
    python = ROOT / MODELOPT_VENV / "bin" / "python"
    if not python.exists():
        raise ConfigError(
            f"no {MODELOPT_VENV}",
            expected="NVIDIA ModelOpt in a virtual environment of its own, with Python 3.12",
            do=MAKE_VENV,
        )
    return python


def exported(checkpoint: Path, size: str | None, folder: Path) -> Path:
    """The bundle of `riceseg export` with FP32 alone, in `folder`; GraphError if that failed."""
    out = folder / "bundle"
    command = [sys.executable, "-m", "exporter", "--checkpoint", str(checkpoint), "--out", str(out)]
    done = subprocess.run(
        [*command, "--runs", "1", *([] if size is None else ["--size", size])],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode != 0:
        raise GraphError(
            f"{checkpoint.name}, which riceseg export refuses ({last_line(done.stderr)})",
            expected="a checkpoint that it takes",
            do="export it by hand to see why",
        )
    return out


def modelopt_versions() -> dict[str, str]:
    """ModelOpt and what it calibrates with, in its own venv; ConfigError where it is not there."""
    code = (
        "import importlib.metadata as m, platform; "
        "print(m.version('nvidia-modelopt'), m.version('onnxruntime-gpu'), "
        "platform.python_version())"
    )
    python = str(python_of(MODELOPT))
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"{MODELOPT_VENV} without ModelOpt ({last_line(done.stderr)})",
            expected="NVIDIA ModelOpt and onnxruntime-gpu in it",
            do=MAKE_VENV,
        )
    modelopt, runtime, version = done.stdout.split()
    return {
        "nvidia-modelopt": modelopt,
        "nvidia-modelopt: onnxruntime-gpu": runtime,
        "nvidia-modelopt: python": version,
    }


def quantized(row: Row, onnx: Path, images: Path, input_name: str) -> tuple[Path, Done]:
    """The INT8 graph of `onnx` in a folder of its own, and what making it took.

    images: .npy of (N, H, W, C) uint8.
    """
    folder = onnx.parent / row.key
    folder.mkdir()
    model = Path(shutil.copy(onnx, folder))  # tools write beside it
    out = folder / "int8.onnx"
    job = {
        "onnx": str(model),
        "out": str(out),
        "input_name": input_name,
        "images": str(images),
        "options": dict(row.options),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [str(python_of(row.tool)), str(HERE / PROGRAMS[row.tool]), str(path)]
    return out, child(command, folder)


def built(onnx: Path, tensorrt: Path) -> Done:
    """`tensorrt`: the folder with TensorRT-RTX, see `tests.rtx.assemble`."""
    command = [sys.executable, str(HERE / "build_rtx.py"), str(onnx)]
    return child(command, onnx.parent, python_path=[str(tensorrt)])


def tensorrt_folder() -> Path:
    """TensorRT-RTX for this Python, fetched once; MissingPackageError where it cannot be had."""
    command = [sys.executable, "-m", "tests.rtx.assemble"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingPackageError(
            f"tensorrt-rtx ({last_line(done.stderr)})", needed_for="building", extra="test"
        )
    return Path(done.stdout.split()[-1])


def child(command: list[str], folder: Path, *, python_path: list[str] | None = None) -> Done:
    """Run it with `folder` for what it leaves behind; a failure is a result, not an exception."""
    (folder / "result.json").unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(ROOT), *(python_path or [])]),
        "TMPDIR": str(folder),
        "PYTHONWARNINGS": "ignore",
    }
    log = folder / "log.txt"
    with open(log, "wb") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if done.returncode == 0:
        return Done(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    text = last_line(log.read_text(encoding="utf-8", errors="replace"))
    return Done({}, f"exit code {done.returncode}: {text.replace(str(folder), '')}")


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:LONGEST] if lines else "no output"
