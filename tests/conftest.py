"""Fixtures that need a download, for every test below this folder.

Where one cannot be had, its tests are skipped with the reason; with RICESEG_REQUIRE_FIXTURES=1,
which CI sets, they fail instead.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import NoReturn

import pytest

RTX_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs")


def skip_or_fail(reason: str) -> NoReturn:
    if os.environ.get("RICESEG_REQUIRE_FIXTURES", "") not in ("", "0"):
        pytest.fail(f"RICESEG_REQUIRE_FIXTURES is set: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def _rtx_modules() -> dict[str, ModuleType]:
    """TensorRT-RTX's modules by name, loaded and taken out of sys.modules again."""
    # Not at the top: beside mmsegmentation, whose wheel brings a package `tests`, ours is hidden.
    from tests.rtx.assemble import assembled_tensorrt
    from tests.rtx.wheels_folder import FixtureUnavailable

    try:
        folder = assembled_tensorrt()
    except FixtureUnavailable as error:
        skip_or_fail(f"no TensorRT-RTX: {error}")
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module("tensorrt_rtx")
    finally:
        sys.path.remove(str(folder))
    names = [name for name in sys.modules if name.partition(".")[0] in RTX_MODULES]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def tensorrt_rtx(
    _rtx_modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The real TensorRT-RTX 1.7.1; `import tensorrt_rtx` finds it during this test alone.

    Its parser and builder work here; deserialising and running an engine need a GPU.
    """
    for name, module in _rtx_modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return _rtx_modules["tensorrt_rtx"]
