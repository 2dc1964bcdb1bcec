"""The fake builder has no name that the real bindings of its version lack, and what the builder's
code touches by a string is there.
"""

from __future__ import annotations

import enum
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import skip_or_fail
from tests.rtx.bindings import RTX, Names, names_of_bindings
from tests.rtx.wheels_folder import FixtureUnavailable


def real(which: str) -> Names:
    try:
        return names_of_bindings(which)
    except FixtureUnavailable as error:
        skip_or_fail(f"no bindings of {which}: {error}")


@pytest.fixture
def fake_builder(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "device"))
    yield importlib.import_module("fake_builder")
    sys.modules.pop("fake_builder", None)


def names_of_fake(module: ModuleType) -> set[str]:
    """ "Class" and "Class.member" of what the fake module offers."""
    found: set[str] = set()
    for name, value in vars(module).items():
        if not isinstance(value, type):
            continue
        found.add(name)
        if issubclass(value, enum.Enum):
            found |= {f"{name}.{member}" for member in value.__members__}
        else:
            public = {x for base in value.__mro__[:-1] for x in vars(base) if x[0] != "_"}
            found |= {f"{name}.{member}" for member in public | set(getattr(value, "_names", ()))}
    return found


@pytest.mark.parametrize("which", ["8.6", "10.3", "10.13", "10.16", "11.4"])
def test_the_fake_has_only_names_of_the_real_bindings(fake_builder: Any, which: str) -> None:
    names = real(which)
    version = ".".join(str(part) for part in names.version)
    module = fake_builder.fake_module(version)
    offered = names_of_fake(module)
    assert {"Builder.create_network", "BuilderFlag.REFIT", "IBuilderConfig.DLA_core"} <= offered
    invented = {name for name in offered if not names.has(name)}
    assert invented == set()


LAYER = ("name", "type", "metadata", "num_inputs", "num_outputs", "get_input", "get_output")
WEAK = ("BuilderFlag.FP16", "BuilderFlag.INT8", "ILayer.precision", "ILayer.set_output_type")
ERROR = ("node_name", "node_operator")


@pytest.mark.parametrize("which", ["8.6", "10.3", "10.13", "10.16", "11.4", RTX])
def test_each_version_has_the_names_that_its_capabilities_promise(which: str) -> None:
    from engines.trt.api import TENSORRT, TENSORRT_RTX, TensorRt

    names = real(which)
    rt = TensorRt(None, TENSORRT_RTX if which == RTX else TENSORRT, names.version)
    assert all(names.has(f"ILayer.{name}") for name in LAYER)
    assert all(names.has(name) for name in WEAK) != rt.strongly_typed_only()
    assert names.has("IInt8EntropyCalibrator2") == rt.has_implicit_int8()
    assert names.has("IProgressMonitor") == rt.has_progress_monitor()
    assert all(names.has(f"ParserError.{name}") for name in ERROR) == rt.has_node_errors()
    assert names.has("BuilderFlag.STRIP_PLAN") == rt.has_strip_weights()
    assert names.has("OnnxParserRefitter") == rt.has_onnx_refitter()
    assert (
        names.has("NetworkDefinitionCreationFlag.EXPLICIT_BATCH")
        or names.version >= (10, 0, 0)
        or rt.is_rtx
    )
    assert names.has("NetworkDefinitionCreationFlag.STRONGLY_TYPED") or not rt.strongly_typed_only()
    if rt.has_opt_level():
        assert names.has("IBuilderConfig.builder_optimization_level")
    if rt.has_version_compatible():
        assert names.has("BuilderFlag.VERSION_COMPATIBLE")
    if rt.has_hardware_compatible():
        assert names.has("HardwareCompatibilityLevel.AMPERE_PLUS")
    if rt.has_timing_cache():
        assert names.has("IBuilderConfig.create_timing_cache")


@pytest.mark.parametrize("which", ["8.6", "10.3", "10.13", "10.16", "11.4", RTX])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("IBuilderConfig.set_timing_cache", ("cache", "ignore_mismatch")),
        ("IBuilderConfig.create_timing_cache", ("serialized_timing_cache",)),
        ("IBuilderConfig.set_memory_pool_limit", ("pool", "pool_size")),
        ("IBuilderConfig.set_flag", ("flag",)),
        ("IBuilderConfig.add_optimization_profile", ("profile",)),
        ("IOptimizationProfile.set_shape", ("input", "min", "opt", "max")),
        ("Builder.build_serialized_network", ("network", "config")),
        ("OnnxParser.parse", ("model", "path=")),
    ],
)
def test_methods_take_what_the_builder_gives_them(
    which: str, method: str, parameters: tuple[str, ...]
) -> None:
    assert parameters in real(which).signatures(method)
