"""open_cuda where there is nothing to open; no driver is called here."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from engines.cuda import ctypes_calls, open_cuda
from engines.cuda.status import error_from_status
from engines.errors import ConfigError, DeviceError, InputError

MISSING = ("libcuda-that-is-not-there.so.1",)


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library, no package and no choice, whatever this machine has."""
    monkeypatch.setattr(ctypes_calls, "LIBRARY_NAMES", MISSING)
    monkeypatch.delenv("RICESEG_CUDA", raising=False)
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver", "cuda.cuda", "pycuda"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)


@pytest.mark.parametrize("binding", [None, "driver"])
def test_without_a_driver_the_error_says_how_to_get_one(binding: str | None) -> None:
    with pytest.raises(DeviceError, match=r"no NVIDIA driver library .*that-is-not-there") as info:
        open_cuda(binding)
    assert "--runtime nvidia" in info.value.do
    assert "ONNX Runtime" in info.value.do


@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_a_binding_that_is_asked_for_and_not_installed_is_named(binding: str) -> None:
    with pytest.raises(DeviceError, match=rf"{binding}.*cannot be imported.*'driver', which needs"):
        open_cuda(binding)


def test_an_unknown_binding_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"binding 'cupy'; expected 'cuda-python' or 'pycuda' or"):
        open_cuda("cupy")


def test_an_unknown_binding_in_the_environment_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RICESEG_CUDA", "cudart")
    with pytest.raises(ConfigError, match="RICESEG_CUDA 'cudart'"):
        open_cuda()


def test_an_empty_environment_variable_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RICESEG_CUDA", "")
    with pytest.raises(DeviceError, match="no NVIDIA driver library"):
        open_cuda()


@pytest.mark.parametrize("device", ["0", None, 1.0, True])
def test_a_device_that_is_no_number_is_refused(device: object) -> None:
    with pytest.raises(InputError, match="the number of a GPU"):
        open_cuda(device=device)  # type: ignore[arg-type]


def test_a_package_that_breaks_while_it_is_imported_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise ValueError("numpy.dtype size changed, may indicate binary incompatibility")

    broken = Broken("cuda.bindings.driver")
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", broken)
    with pytest.raises(DeviceError, match="no NVIDIA driver library"):
        open_cuda()


@pytest.mark.parametrize(
    ("code", "lost"), [(1, False), (2, False), (4, True), (700, True), (719, True), (901, False)]
)
def test_only_errors_that_end_the_context_count_as_such(code: int, lost: bool) -> None:
    error = error_from_status(code, name="NAME", text="text", operation="cuCall")
    assert error.context_is_lost is lost
    assert error.got == f"NAME ({code}) from cuCall: text"
