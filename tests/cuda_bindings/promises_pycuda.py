"""What only pycuda does; see harness.py."""

from __future__ import annotations

import ctypes

import pytest

from engines.cuda import Cuda, open_cuda
from engines.errors import DeviceError
from tests.cuda_bindings.harness import cuda, fake, nothing_left, round_trip

__all__ = ["cuda", "nothing_left"]  # fixtures


def test_pycuda_says_that_it_records_no_graphs(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match=r"a CUDA graph with pycuda.*RICESEG_CUDA=driver"):
        cuda.capture(cuda.stream(), lambda: None)


def test_a_context_that_pycuda_made_before_stays_current_for_pycuda() -> None:
    import pycuda.driver

    pycuda.driver.init()
    theirs = pycuda.driver.Device(0).make_context()
    with open_cuda() as cuda:
        assert round_trip(cuda) == [1, 2, 3, 4]
        assert fake.fake_current() == theirs.handle
        set_by_torch = ctypes.c_void_p()
        fake.cuCtxCreate_v2(ctypes.byref(set_by_torch), 0, 0)
        assert round_trip(cuda) == [1, 2, 3, 4]
        assert fake.fake_current() == set_by_torch.value
        fake.cuCtxDestroy_v2(set_by_torch)
    while fake.fake_depth() > 1:
        fake.cuCtxPopCurrent_v2(None)
    pycuda.driver.Context.pop()
    del theirs
