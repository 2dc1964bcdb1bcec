"""The stand-in for libcuda.so.1, compiled when it is first asked for, and how to run code on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FAKE_PYCUDA = HERE / "fake_pycuda"


def compiled_driver(folder: Path) -> Path:
    """The folder, which now holds libcuda.so.1. FileNotFoundError without a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc) to build the stand-in for libcuda.so.1")
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        library = Path(draft) / "libcuda.so.1"
        command = [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        source = HERE / "fake_libcuda.c"
        subprocess.run([*command, "-o", library, source, "-lpthread", "-ldl"], check=True)
        library.rename(folder / library.name)
    return folder


def run_on_driver(folder: Path, arguments: list[str], **settings: str) -> tuple[int, str]:
    """Exit code and output of this Python with the arguments and the stand-in as its driver.

    `settings` are environment variables; none of ours come from outside.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RICESEG_", "FAKE_CUDA_", "CUDA_", "PYTEST_"))
    }
    environment.update(
        LD_LIBRARY_PATH=str(folder),
        PYTHONPATH=os.pathsep.join([str(ROOT), *settings.pop("PYTHONPATH", "").split()]),
        **settings,
    )
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return finished.returncode, finished.stdout
