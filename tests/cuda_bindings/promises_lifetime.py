"""Promises about who owns what and when it is released; see harness.py."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from engines.cuda import Cuda, open_cuda
from engines.errors import DeviceError, InputError
from tests.cuda_bindings.harness import (
    BINDING,
    buffers,
    cuda,
    fake,
    in_thread,
    nothing_left,
    retained,
    round_trip,
    still_open,
)

__all__ = ["cuda", "nothing_left"]  # fixtures


def test_freeing_waits_for_the_work_that_uses_the_memory(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)
    cuda.copy_in(middle, source, 4, stream)
    cuda.copy_out(target, middle, 4, stream)
    middle.free()
    source.free()
    assert list(target.array) == [1, 2, 3, 4]
    stream.synchronize()


def test_freeing_twice_does_nothing(cuda: Cuda) -> None:
    things = [cuda.device_buffer(1), cuda.host_buffer(1)]
    others = [cuda.stream(), cuda.event()]
    for _ in range(2):
        for thing in things:
            thing.free()
        for other in others:
            other.destroy()
    cuda.close()
    cuda.close()
    assert still_open() == {}


def test_what_was_freed_cannot_be_used(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)
    event, queue = cuda.event(), cuda.stream()
    event.record(stream)
    for freed in (source.free, middle.free, stream.destroy, event.destroy):
        freed()
    uses: list[Callable[[], Any]] = [
        lambda: source.array,
        lambda: source.address,
        lambda: middle.address,
        lambda: stream.handle,
        stream.synchronize,
        event.synchronize,
        lambda: event.record(queue),
        lambda: queue.wait(event),
        lambda: event.elapsed_ms(event),
        lambda: cuda.copy_out(target, middle, 1, queue),
        lambda: cuda.copy_in(cuda.device_buffer(4), source, 1, queue),
        lambda: cuda.copy_out(target, cuda.device_buffer(4), 1, stream),
    ]
    for use in uses:
        with pytest.raises(InputError, match="after it was freed"):
            use()


def test_nothing_can_be_used_after_close() -> None:
    cuda = open_cuda()
    source, middle, target, stream = buffers(cuda)
    event = cuda.event()
    cuda.close()
    assert still_open() == {}
    uses: list[Callable[[], Any]] = [
        lambda: source.array,
        lambda: middle.address,
        lambda: stream.handle,
        stream.synchronize,
        event.synchronize,
        lambda: event.record(stream),
        lambda: stream.wait(event),
        lambda: cuda.copy_in(middle, source, 1, stream),
        lambda: cuda.copy_out(target, middle, 1, stream),
        lambda: cuda.device_buffer(1),
        lambda: cuda.host_buffer(1),
        cuda.stream,
        cuda.event,
        cuda.free_bytes,
        lambda: cuda.current().__enter__(),
    ]
    for use in uses:
        with pytest.raises(InputError, match=r"after (it was freed or its Cuda closed|close)"):
            use()
    for late in (source.free, middle.free, target.free, stream.destroy, event.destroy):
        late()
    assert cuda.info.name == "Fake Orin 0"


def test_closing_waits_for_work_and_frees_everything() -> None:
    cuda = open_cuda()
    source, middle, target, stream = buffers(cuda)
    view = target.array
    cuda.copy_in(middle, source, 4, stream)
    cuda.copy_out(target, middle, 4, stream)
    cuda.close()
    assert list(view) == [1, 2, 3, 4]
    assert still_open() == {"host": 1}
    del view
    assert still_open() == {}


def test_a_view_of_pinned_memory_outlives_its_buffer_and_the_context() -> None:
    cuda = open_cuda()
    buffer = cuda.host_buffer(4)
    buffer.array[:] = [1, 2, 3, 4]
    view = buffer.array.reshape(2, 2)[:, 1]
    buffer.free()
    cuda.close()
    del buffer, cuda
    gc.collect()
    assert list(view) == [2, 4]
    assert still_open() == {"host": 1}
    assert retained()
    del view
    assert still_open() == {}


def test_what_is_dropped_without_freeing_is_released_by_the_next_call(cuda: Cuda) -> None:
    buffers(cuda)
    cuda.event()
    gc.collect()
    cuda.free_bytes()
    assert still_open() == {}


def test_memory_that_was_dropped_is_there_for_the_next_buffer(cuda: Cuda) -> None:
    fake.fake_total(1000)
    for _ in range(10):
        cuda.device_buffer(501)


def test_dropping_everything_releases_the_context_too() -> None:
    cuda = open_cuda()
    things = [*buffers(cuda), cuda.event()]
    del cuda
    gc.collect()
    assert retained()
    things[3].synchronize()  # Objects keep their Cuda.
    del things
    gc.collect()
    assert still_open() == {}
    assert retained() == (BINDING == "pycuda")


def test_dropping_the_last_object_on_another_thread_releases_the_context_too() -> None:
    things = [*buffers(open_cuda())]
    in_thread(things.clear)
    gc.collect()
    assert still_open() == {}


def test_objects_in_a_reference_cycle_are_released(cuda: Cuda) -> None:
    cycle: list[Any] = [*buffers(cuda)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    cuda.free_bytes()
    assert still_open() == {}


def test_a_buffer_freed_during_a_call_is_released_when_the_call_ends(cuda: Cuda) -> None:
    buffer = cuda.device_buffer(4)
    with cuda.context.call(buffer.resource):  # type: ignore[attr-defined]
        in_thread(buffer.free)
        assert still_open() == {"device": 1}
    assert still_open() == {}


def test_closing_during_a_call_of_another_thread_lets_that_call_end() -> None:
    cuda = open_cuda()
    stream = cuda.stream()
    with cuda.context.call(stream.resource):  # type: ignore[attr-defined]
        in_thread(cuda.close)
        assert still_open() == {"stream": 1}
        assert retained()
    assert still_open() == {}


def test_threads_that_free_and_use_the_same_things_end_in_clear_errors() -> None:
    cuda = open_cuda()
    source, middle, target, stream = buffers(cuda)
    start = threading.Barrier(9)
    problems: list[BaseException] = []

    def use() -> None:
        start.wait()
        try:
            for _ in range(1000):
                cuda.copy_in(middle, source, 4, stream)
                cuda.copy_out(target, middle, 4, stream)
                stream.synchronize()
        except InputError:
            return
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    middle.free()
    cuda.close()
    for thread in threads:
        thread.join()
    assert problems == []
    assert still_open() == {}


def test_after_a_fatal_error_every_call_says_to_restart_and_closing_is_quiet() -> None:
    cuda = open_cuda()
    stream, buffer = cuda.stream(), cuda.device_buffer(4)
    fake.fake_fail(b"cuStreamSynchronize", 700, 1)
    for _ in range(2):
        with pytest.raises(
            DeviceError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS \(700\).*restart the process"
        ):
            stream.synchronize()
    with pytest.raises(DeviceError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        cuda.device_buffer(1)
    buffer.free()
    cuda.close()
    fake.fake_restart()


def test_a_process_that_leaves_everything_open_exits_quietly() -> None:
    code = (
        "import threading\n"
        "from engines.cuda import open_cuda\n"
        "cuda = open_cuda()\n"
        "kept = [cuda.device_buffer(4), cuda.host_buffer(4), cuda.stream(), cuda.event()]\n"
        "view = kept[1].array[1:]\n"
        "cycle = [cuda]; cycle.append(cycle)\n"
        "threading.Thread(target=lambda: kept.append(cuda.stream())).start()\n"
        "class Late:\n"
        "    def __del__(self): kept[0].free(); cuda.close()\n"
        "late = Late()\n"
    )
    finished = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_ten_thousand_rounds_leave_nothing_behind(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)
    event = cuda.event()
    free = cuda.free_bytes()
    for _ in range(10_000):
        cuda.copy_in(middle, source, 4, stream)
        event.record(stream)
        cuda.copy_out(target, middle, 4, stream)
        stream.synchronize()
    assert cuda.free_bytes() == free
    assert still_open() == {"device": 1, "host": 2, "stream": 1, "event": 1}


def test_a_hundred_openings_leave_nothing_behind() -> None:
    for _ in range(100):
        with open_cuda() as cuda:
            assert round_trip(cuda) == [1, 2, 3, 4]
