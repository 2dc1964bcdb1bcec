"""Each CUDA binding does the same, also beside contexts of others."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from engines.cuda import open_cuda
from engines.errors import DeviceError

BINDINGS = ["cuda-python", "pycuda", "driver"]


@pytest.fixture(params=BINDINGS)
def binding(request, cuda):
    """An open Cuda of each binding that is installed."""
    try:
        opened_cuda = open_cuda(request.param)
    except DeviceError as error:
        pytest.skip(str(error))
    with opened_cuda:
        yield opened_cuda


def test_every_binding_tells_the_same_about_the_gpu(binding, cuda):
    assert binding.info == cuda.info


def test_bytes_come_back_as_they_were_sent(binding):
    size = 1_000_003
    source, target = binding.host_buffer(size), binding.host_buffer(size)
    device, stream = binding.device_buffer(size), binding.stream()
    source.array[:] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    target.array[:] = 0
    binding.copy_in(device, source, size, stream)
    binding.copy_out(target, device, size, stream)
    stream.synchronize()
    np.testing.assert_array_equal(target.array, source.array)


def test_mapped_memory_is_read_and_written_in_place(binding):
    if not binding.info.can_map_host:
        pytest.skip(f"{binding.info.name} maps no host memory")
    buffer = binding.host_buffer(4096, mapped=True)
    assert buffer.address != 0
    buffer.array[:] = 7
    assert (buffer.array == 7).all()


def test_events_measure_the_time_between_them(binding):
    size = 64 * 2**20
    host, device, stream = binding.host_buffer(size), binding.device_buffer(size), binding.stream()
    start, end = binding.event(), binding.event()
    start.record(stream)
    for _ in range(4):
        binding.copy_in(device, host, size, stream)
    end.record(stream)
    end.synchronize()
    # 256 MB: no bus moves more than 1 TB/s, and none takes 10 s for it.
    assert 0.25 < end.elapsed_ms(start) < 10_000


def test_an_allocation_that_cannot_be_had_is_refused_with_the_figures(binding):
    with pytest.raises(DeviceError, match="memory"):
        binding.device_buffer(2**50)
    binding.device_buffer(2**20).free()


def test_labels_are_the_same_through_every_binding(binding, opened, images):
    wanted = opened("fp16").labels(images[:4])
    predictor = opened("fp16", cuda=binding)
    np.testing.assert_array_equal(predictor.labels(images[:4]), wanted)
    predictor.close()


@pytest.mark.parametrize("other", BINDINGS)
def test_two_bindings_work_side_by_side(binding, other, opened, images):
    try:
        second_cuda = open_cuda(other)
    except DeviceError as error:
        pytest.skip(str(error))
    with second_cuda:
        first, second = opened("fp16", cuda=binding), opened("fp16", cuda=second_cuda)
        for _ in range(3):
            np.testing.assert_array_equal(first.labels(images[:1]), second.labels(images[:1]))
        second.close()
        first.labels(images[:1])
        first.close()


def test_a_context_that_another_library_made_stays_current(binding, opened, images):
    driver = ctypes.CDLL("libcuda.so.1")
    context, current = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuCtxCreate_v2(ctypes.byref(context), 0, binding.device) == 0
    try:
        predictor = opened("fp16", cuda=binding)
        predictor.labels(images[:1])
        predictor.close()
        assert driver.cuCtxGetCurrent(ctypes.byref(current)) == 0
        assert current.value == context.value
    finally:
        driver.cuCtxDestroy_v2(context)
