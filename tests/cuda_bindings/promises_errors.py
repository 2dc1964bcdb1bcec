"""Promises about what the driver refuses; see harness.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from engines.cuda import Cuda, open_cuda, pycuda_operations
from engines.errors import DeviceError, InputError
from tests.cuda_bindings.harness import (
    BINDING,
    buffers,
    cuda,
    fake,
    nothing_left,
    round_trip,
)

__all__ = ["cuda", "nothing_left"]  # fixtures


def test_mapped_memory_is_refused_where_the_gpu_cannot_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_CUDA_NO_MAP", "1")
    with open_cuda() as cuda, pytest.raises(DeviceError, match="leave mapped out"):
        cuda.host_buffer(4, mapped=True)


def test_objects_of_another_cuda_are_refused(cuda: Cuda) -> None:
    with open_cuda() as other:
        source, middle, _, stream = buffers(cuda)
        with pytest.raises(InputError, match="of another Cuda"):
            other.copy_in(middle, source, 4, stream)
        with pytest.raises(InputError, match="of another Cuda"):
            stream.wait(other.event())
        with pytest.raises(InputError, match="a Stream that this Cuda made"):
            cuda.event().record(object())  # type: ignore[arg-type]


def test_out_of_memory_says_what_to_do_and_leaves_all_else_usable(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_OUT_OF_MEMORY \(2\).*smaller batch") as info:
        cuda.device_buffer(2**31)
    assert info.value.code == 2  # type: ignore[attr-defined]
    assert round_trip(cuda) == [1, 2, 3, 4]


def test_no_memory_for_the_context_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pycuda_operations, "_contexts", {})  # pycuda may hold it already.
    fake.fake_fail(b"cuDevicePrimaryCtxRetain", 2, 1)
    with pytest.raises(DeviceError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        open_cuda()


@pytest.mark.parametrize(
    ("function", "use"),
    [
        (b"cuStreamCreate", lambda cuda: cuda.stream()),
        (b"cuEventCreate", lambda cuda: cuda.event()),
        (b"cuMemAlloc", lambda cuda: cuda.device_buffer(1)),
        (b"cuMemHostAlloc", lambda cuda: cuda.host_buffer(1)),
        (b"cuMemHostGetDevicePointer", lambda cuda: cuda.host_buffer(1, mapped=True)),
        (b"cuMemGetInfo", lambda cuda: cuda.free_bytes()),
        (b"cuMemcpyHtoDAsync", round_trip),
        (b"cuMemcpyDtoHAsync", round_trip),
        (b"cuStreamSynchronize", round_trip),
        (b"cuCtxPushCurrent", round_trip),
    ],
)
def test_a_status_of_any_call_becomes_an_error_with_its_name(
    cuda: Cuda, function: bytes, use: Callable[[Cuda], Any]
) -> None:
    fake.fake_fail(function, 999, 1)
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_UNKNOWN \(999\)"):
        use(cuda)
    assert round_trip(cuda) == [1, 2, 3, 4]


def test_a_status_that_the_driver_has_no_name_for_is_an_error_too(cuda: Cuda) -> None:
    if BINDING == "pycuda" and "fake_pycuda" not in sys.modules["pycuda"].__file__:
        pytest.skip("pycuda itself dies of a null text")
    fake.fake_fail(b"cuMemAlloc", 77777, 1)
    with pytest.raises(DeviceError, match="cuMemAlloc"):
        cuda.device_buffer(1)


def test_memory_that_cannot_be_freed_is_reported_once(cuda: Cuda) -> None:
    if BINDING == "pycuda" and "fake_pycuda" not in sys.modules["pycuda"].__file__:
        pytest.skip("pycuda prints it and goes on")
    buffer = cuda.device_buffer(4)
    fake.fake_fail(b"cuMemFree", 999, 1)
    with pytest.raises(DeviceError, match="CUDA_ERROR_UNKNOWN"):
        buffer.free()
    buffer.free()
    fake.fake_restart()


@pytest.mark.parametrize("device", [1, 3, -1])
def test_a_gpu_number_out_of_range_is_named(device: int) -> None:
    with pytest.raises(DeviceError, match=rf"GPU {device} of 1; .* count from 0"):
        open_cuda(device=device)


def test_no_gpu_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "0")
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_NO_DEVICE.*CUDA_VISIBLE_DEVICES"):
        open_cuda()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (34, "CUDA_ERROR_STUB_LIBRARY.*stubs"),
        (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH.*reboot after updating"),
        (999, "CUDA_ERROR_UNKNOWN.*dmesg"),
        (3, "CUDA_ERROR_NOT_INITIALIZED.*after the fork"),
    ],
)
def test_a_driver_that_does_not_start_says_why(code: int, text: str) -> None:
    fake.fake_fail(b"cuInit", code, 1)
    with pytest.raises(DeviceError, match=text):
        open_cuda()
