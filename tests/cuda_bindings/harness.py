"""What the promises are tried with: the stand-in's own functions, and a Cuda of the binding."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from engines.cuda import Cuda, open_cuda

BINDING = os.environ["RICESEG_CUDA"]
KINDS = ("device", "host", "stream", "event", "graph", "recorded graph")
HAS_GRAPHS = BINDING != "pycuda"

fake = ctypes.CDLL("libcuda.so.1")
fake.fake_calls.restype = ctypes.c_char_p
fake.fake_current.restype = ctypes.c_void_p
fake.fake_total.argtypes = [ctypes.c_long]
fake.cuInit(0)


def still_open() -> dict[str, int]:
    return {kind: fake.fake_open(i) for i, kind in enumerate(KINDS) if fake.fake_open(i)}


def called() -> list[str]:
    return fake.fake_calls().decode().split()


def retained() -> bool:
    return fake.fake_retained(0) > 0


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Each test starts with nothing open, and leaves nothing, on no thread's stack either."""
    fake.fake_restart()
    yield
    gc.collect()
    assert still_open() == {}
    assert fake.fake_depth() == 0
    assert fake.fake_leaked() == 0
    assert retained() == (BINDING == "pycuda" and bool(pycuda_keeps()))
    fake.fake_restart()


def pycuda_keeps() -> dict[int, Any]:
    from engines.cuda.pycuda_operations import _contexts

    return _contexts


@pytest.fixture
def cuda(nothing_left: None) -> Iterator[Cuda]:
    with open_cuda() as opened:
        yield opened


@contextmanager
def foreign_context() -> Iterator[int]:
    """A context of its own, as pycuda.autoinit makes one, current on this thread."""
    handle = ctypes.c_void_p()
    assert fake.cuCtxCreate_v2(ctypes.byref(handle), 0, 0) == 0
    yield handle.value
    assert fake.fake_current() == handle.value
    assert fake.fake_depth() == 1
    assert fake.cuCtxDestroy_v2(handle) == 0


def buffers(cuda: Cuda, nbytes: int = 4) -> tuple[Any, Any, Any, Any]:
    """Pinned memory holding 1 2 3 4 ..., device memory, pinned memory holding 0, a stream."""
    source, middle, target = (
        cuda.host_buffer(nbytes),
        cuda.device_buffer(nbytes),
        cuda.host_buffer(nbytes),
    )
    source.array[:] = np.arange(1, nbytes + 1)
    target.array[:] = 0
    return source, middle, target, cuda.stream()


def round_trip(cuda: Cuda, nbytes: int = 4) -> list[int]:
    source, middle, target, stream = buffers(cuda, nbytes)
    cuda.copy_in(middle, source, nbytes, stream)
    cuda.copy_out(target, middle, nbytes, stream)
    stream.synchronize()
    return [int(value) for value in target.array]


def in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
