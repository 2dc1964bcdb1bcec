"""Promises about contexts and threads; see harness.py."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from engines.cuda import Cuda, GpuInfo, open_cuda
from engines.errors import DeviceError
from tests.cuda_bindings.harness import (
    BINDING,
    HAS_GRAPHS,
    buffers,
    called,
    cuda,
    fake,
    foreign_context,
    in_thread,
    nothing_left,
    pycuda_keeps,
    round_trip,
    still_open,
)

__all__ = ["cuda", "nothing_left"]  # fixtures


def test_the_gpus_facts_are_what_the_driver_says(cuda: Cuda) -> None:
    version = int(os.environ.get("FAKE_CUDA_VERSION", "12060"))
    assert cuda.info == GpuInfo(
        name="Fake Orin 0",
        compute_capability=(8, 7),
        total_bytes=2**30,
        integrated=True,
        can_map_host=True,
        driver_version=(version // 1000, version % 1000 // 10),
    )
    assert (cuda.binding, cuda.device, cuda.supports_graphs) == (BINDING, 0, HAS_GRAPHS)


def test_another_librarys_context_is_current_after_every_call() -> None:
    with foreign_context() as theirs:
        cuda = open_cuda()
        assert fake.fake_current() == theirs
        source, middle, target, stream = buffers(cuda)
        event = cuda.event()
        cuda.copy_in(middle, source, 4, stream)
        event.record(stream)
        stream.wait(event)
        event.synchronize()
        cuda.free_bytes()
        assert fake.fake_current() == theirs
        for thing in (source, middle, target):
            thing.free()
            assert fake.fake_current() == theirs
        event.destroy()
        stream.destroy()
        cuda.close()


def test_current_may_nest_and_puts_back_what_was_there(cuda: Cuda) -> None:
    with foreign_context() as theirs:
        with cuda.current():
            ours = fake.fake_current()
            assert ours != theirs
            with cuda.current():
                assert fake.fake_current() == ours
            assert fake.fake_current() == ours
        assert fake.fake_current() == theirs


def test_current_ends_with_the_block_also_after_an_exception(cuda: Cuda) -> None:
    with pytest.raises(ZeroDivisionError), cuda.current():
        _ = 1 // 0
    assert fake.fake_depth() == 0


def test_a_context_that_other_code_leaves_behind_is_named_and_not_taken_away(cuda: Cuda) -> None:
    theirs = ctypes.c_void_p()
    with pytest.raises(DeviceError, match="a context that other code made current"), cuda.current():
        fake.cuCtxCreate_v2(ctypes.byref(theirs), 0, 0)
    assert fake.fake_current() == theirs.value
    fake.cuCtxDestroy_v2(theirs)
    fake.cuCtxPopCurrent_v2(None)
    if BINDING == "pycuda":
        import pycuda.driver

        fake.cuCtxPushCurrent_v2(ctypes.c_void_p(pycuda_keeps()[0].handle))
        pycuda.driver.Context.pop()


def test_every_thread_may_make_use_and_free_everything(cuda: Cuda) -> None:
    source, middle, target, stream = in_thread(lambda: buffers(cuda))
    cuda.copy_in(middle, source, 4, stream)
    in_thread(lambda: cuda.copy_out(target, middle, 4, stream))
    in_thread(stream.synchronize)
    assert list(target.array) == [1, 2, 3, 4]
    for thing in (source, middle, target):
        in_thread(thing.free)
    in_thread(stream.destroy)
    assert still_open() == {"host": 1} or still_open() == {}


def test_many_threads_at_once_keep_their_results_apart_and_leak_nothing(cuda: Cuda) -> None:
    def work(seed: int) -> list[int]:
        for size in range(1, 40):
            assert round_trip(cuda, size) == list(range(1, size + 1))
        return round_trip(cuda, seed)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(1, 9)))
    assert results == [list(range(1, seed + 1)) for seed in range(1, 9)]


def test_two_at_once_share_the_context_and_each_releases_only_its_own() -> None:
    first, second = open_cuda(), open_cuda()
    buffer = second.device_buffer(4)
    first.close()
    assert buffer.address
    assert round_trip(second) == [1, 2, 3, 4]
    second.close()


def test_a_forked_process_is_told_so_and_frees_nothing(cuda: Cuda) -> None:
    buffer = cuda.device_buffer(4)
    child = os.fork()
    if child == 0:
        fake.fake_clear_calls()
        try:
            cuda.device_buffer(4)
        except DeviceError as error:
            buffer.free()
            told = "forked" in str(error) and called() == []
            os._exit(0 if told else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert still_open() == {"device": 1}
