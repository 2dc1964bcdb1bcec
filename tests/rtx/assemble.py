"""TensorRT-RTX, the one TensorRT whose parser and builder work on a machine without a GPU.

As a program it prints the folder: PYTHONPATH=$(python -m tests.rtx.assemble) python my_script.py
"""

from __future__ import annotations

from pathlib import Path

from tests.rtx.wheels_folder import folder_of_wheels

# PyPI has this module as a source archive alone, which would need a build; it is these two lines.
PACKAGE = """\
from tensorrt_rtx_bindings import *
from tensorrt_rtx_bindings import __version__
"""


def assembled_tensorrt() -> Path:
    """Folder for sys.path that has the module `tensorrt_rtx`; 91 MB are fetched once.

    Raises FixtureUnavailable: no network, another platform, no wheel for this Python.
    """
    return folder_of_wheels("rtx", Path(__file__), finish=_add_package)


def _add_package(folder: Path) -> None:
    package = folder / "tensorrt_rtx"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE, encoding="utf-8")


if __name__ == "__main__":
    print(assembled_tensorrt())
