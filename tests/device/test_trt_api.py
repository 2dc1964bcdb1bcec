"""Which TensorRT is there and what it can do."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from fake_builder import fake_module

from engines.errors import ConfigError, DeviceError
from engines.trt.api import TensorRt, load_tensorrt, tensorrt_from_module, version_from_text


def module_called(name, version):
    module = ModuleType(name)
    module.__version__ = version
    return module


def of_version(text, name="tensorrt"):
    return tensorrt_from_module(module_called(name, text))


CAPABILITIES = (
    "strongly_typed_only",
    "has_implicit_int8",
    "has_progress_monitor",
    "has_node_errors",
    "has_layer_metadata",
    "has_timing_cache",
    "has_opt_level",
    "has_version_compatible",
    "has_hardware_compatible",
    "has_strip_weights",
    "has_onnx_refitter",
    "has_dla",
    "labels_are_int64",
)


@pytest.mark.parametrize(
    ("version", "name", "has"),
    [
        ("8.5.2.2", "tensorrt", "has_implicit_int8 has_timing_cache has_dla"),
        (
            "8.6.1",
            "tensorrt",
            "has_implicit_int8 has_layer_metadata has_timing_cache has_opt_level "
            "has_version_compatible has_hardware_compatible has_dla",
        ),
        ("10.3.0", "tensorrt", " ".join(c for c in CAPABILITIES if c != "strongly_typed_only")),
        (
            "10.13.0.35",
            "tensorrt",
            " ".join(c for c in CAPABILITIES if c not in ("strongly_typed_only", "has_dla")),
        ),
        (
            "11.3.0",
            "tensorrt",
            " ".join(c for c in CAPABILITIES if c not in ("has_implicit_int8", "has_dla")),
        ),
        ("11.4.1", "tensorrt", " ".join(c for c in CAPABILITIES if c != "has_implicit_int8")),
        (
            "1.7.1.116",
            "tensorrt_rtx",
            "strongly_typed_only has_progress_monitor has_node_errors has_layer_metadata "
            "has_opt_level has_strip_weights has_onnx_refitter labels_are_int64",
        ),
    ],
)
def test_each_version_has_its_capabilities(version, name, has):
    found = of_version(version, name)
    assert {c for c in CAPABILITIES if getattr(found, c)()} == set(has.split())


def test_the_module_s_name_tells_the_runtime():
    assert str(of_version("10.3.0")) == "TensorRT 10.3.0"
    assert str(of_version("1.7.1.116", "tensorrt_rtx")) == "TensorRT-RTX 1.7.1"
    assert of_version("1.7.1.116", "tensorrt_rtx").is_rtx


@pytest.mark.parametrize(
    ("version", "digits"), [("8.5.2", "8502"), ("8.6.1", "8601"), ("10.3.0", "100300")]
)
def test_a_calibration_cache_spells_the_version_in_digits(version, digits):
    assert of_version(version).calibration_version() == digits


def test_versions_are_read_as_numbers():
    assert version_from_text("10.13.0.35") == (10, 13, 0)
    assert version_from_text("8.6") == (8, 6, 0)
    assert of_version("10.13.0").version > of_version("10.3.0").version
    with pytest.raises(DeviceError, match="version 'unknown'"):
        version_from_text("unknown")


@pytest.fixture
def installed(monkeypatch):
    """A function that makes modules the only ones of TensorRT that can be imported."""

    def install(*modules):
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, None)
        for module in modules:
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def test_tensorrt_is_taken_first_and_rtx_on_request(installed):
    installed(module_called("tensorrt", "10.3.0"), module_called("tensorrt_rtx", "1.7.1"))
    assert str(load_tensorrt()) == "TensorRT 10.3.0"
    assert str(load_tensorrt(rtx=False)) == "TensorRT 10.3.0"
    assert str(load_tensorrt(rtx=True)) == "TensorRT-RTX 1.7.1"


def test_what_is_there_is_taken_when_nothing_is_asked_for(installed):
    installed(module_called("tensorrt_rtx", "1.7.1"))
    assert load_tensorrt().is_rtx
    with pytest.raises(DeviceError, match=r"no TensorRT .*\(tensorrt: .*expected TensorRT 8\.5"):
        load_tensorrt(rtx=False)


def test_a_python_without_tensorrt_is_told_what_to_install(installed):
    installed()
    with pytest.raises(DeviceError, match=r"nvidia-jetpack.*--system-site-packages.*pip install"):
        load_tensorrt()
    with pytest.raises(DeviceError, match=r"tensorrt_rtx: .*expected TensorRT-RTX 1\.0"):
        load_tensorrt(rtx=True)


def test_a_library_that_does_not_load_is_told(installed, monkeypatch):
    installed()
    real = __import__("importlib").import_module

    def fails(name):
        if name == "tensorrt":
            raise ImportError("libnvinfer.so.10: cannot open shared object file")
        return real(name)

    monkeypatch.setattr("importlib.import_module", fails)
    with pytest.raises(DeviceError, match=r"libnvinfer\.so\.10: cannot open shared object file"):
        load_tensorrt()


def test_a_version_before_8_5_is_too_old(installed):
    installed(module_called("tensorrt", "8.4.1.5"))
    with pytest.raises(DeviceError, match=r"got TensorRT 8\.4\.1; expected TensorRT 8\.5"):
        load_tensorrt()


@pytest.mark.parametrize(("version", "flags"), [("8.6.1", 0b10), ("10.3.0", 0), ("11.4.0", 0b10)])
def test_a_network_is_made_as_its_version_wants_it(version, flags):
    """The fake counts flags from 1: EXPLICIT_BATCH before 10, STRONGLY_TYPED from 11."""
    module = fake_module(version)
    found = tensorrt_from_module(module)
    found.new_network(found.new_builder(None))
    assert module.calls == [("create_network", flags)]


def test_a_builder_that_does_not_start_is_a_device_error():
    module = module_called("tensorrt", "10.3.0")

    def no_builder(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module.Builder = no_builder
    with pytest.raises(DeviceError, match=r"cannot start its builder.*riceseg doctor"):
        TensorRt(module, "TensorRT", (10, 3, 0)).new_builder(None)


def test_an_option_that_is_missing_names_where_it_exists():
    with pytest.raises(
        ConfigError, match=r"--opt-level with TensorRT 8\.5\.2; expected TensorRT 8\.6 or newer"
    ):
        of_version("8.5.2").require(False, "--opt-level", "TensorRT 8.6 or newer")
