"""Promises of the bindings that record CUDA graphs; see harness.py."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.cuda import Cuda, open_cuda
from engines.errors import DeviceError, InputError
from tests.cuda_bindings.harness import (
    buffers,
    cuda,
    in_thread,
    nothing_left,
    round_trip,
    still_open,
)

__all__ = ["cuda", "nothing_left"]  # fixtures


def test_a_graph_runs_the_recorded_work_on_each_launch(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)

    def work() -> None:
        cuda.copy_in(middle, source, 4, stream)
        cuda.copy_out(target, middle, 4, stream)

    graph = cuda.capture(stream, work)
    stream.synchronize()
    assert list(target.array) == [0, 0, 0, 0], "recording must not run the work"
    for start in (10, 20):
        source.array[:] = np.arange(start, start + 4)
        graph.launch(stream)
        stream.synchronize()
        assert list(target.array) == [start, start + 1, start + 2, start + 3]
    graph.destroy()
    graph.destroy()
    with pytest.raises(InputError, match="a use of a graph after it was freed"):
        graph.launch(stream)


def test_a_graph_on_a_buffer_that_was_freed_is_not_launched(cuda: Cuda) -> None:
    source, middle, _, stream = buffers(cuda)
    graph = cuda.capture(stream, lambda: cuda.copy_in(middle, source, 4, stream))
    middle.free()
    with pytest.raises(InputError, match="a use of a device buffer after it was freed"):
        graph.launch(stream)


def test_an_exception_of_the_work_passes_and_the_stream_works_on(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)

    def work() -> None:
        cuda.copy_in(middle, source, 4, stream)
        raise KeyError("engine")

    with pytest.raises(KeyError, match="engine"):
        cuda.capture(stream, work)
    cuda.copy_in(middle, source, 4, stream)
    cuda.copy_out(target, middle, 4, stream)
    stream.synchronize()
    assert list(target.array) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda cuda, stream: cuda.device_buffer(4),
        lambda cuda, stream: cuda.host_buffer(4),
        lambda cuda, stream: stream.synchronize(),
    ],
)
def test_work_that_cannot_be_recorded_is_an_error_and_the_stream_works_on(
    cuda: Cuda, forbidden: Callable[[Cuda, Any], Any]
) -> None:
    stream = cuda.stream()
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED.*before rec"):
        cuda.capture(stream, lambda: forbidden(cuda, stream))
    assert round_trip(cuda) == [1, 2, 3, 4]
    stream.synchronize()


def test_work_that_hides_its_failure_is_an_error_at_the_end_of_the_recording(cuda: Cuda) -> None:
    stream = cuda.stream()

    def work() -> None:
        with pytest.raises(DeviceError):
            cuda.device_buffer(4)

    with pytest.raises(DeviceError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        cuda.capture(stream, work)


def test_what_is_freed_or_dropped_while_recording_is_released_afterwards(cuda: Cuda) -> None:
    source, middle, _, stream = buffers(cuda)
    garbage: list[Any] = [cuda.device_buffer(4)]
    garbage.append(garbage)

    def work() -> None:
        nonlocal garbage
        cuda.copy_in(middle, source, 4, stream)
        unused.free()
        del garbage
        gc.collect()
        assert still_open()["device"] == 3

    unused = cuda.device_buffer(4)
    graph = cuda.capture(stream, work)
    cuda.free_bytes()
    assert still_open() == {"device": 1, "host": 2, "stream": 1, "graph": 1}
    graph.launch(stream)
    stream.synchronize()


def test_dropping_another_cuda_while_recording_does_not_end_the_recording(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)
    others = [open_cuda()]
    others.append(others[0].device_buffer(4))  # type: ignore[arg-type]

    def work() -> None:
        cuda.copy_in(middle, source, 4, stream)
        others.clear()
        cuda.copy_out(target, middle, 4, stream)

    graph = cuda.capture(stream, work)
    graph.launch(stream)
    stream.synchronize()
    assert list(target.array) == [1, 2, 3, 4]


def test_other_threads_work_and_free_while_one_records(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)

    def work() -> None:
        cuda.copy_in(middle, source, 4, stream)
        assert in_thread(lambda: round_trip(cuda)) == [1, 2, 3, 4]
        in_thread(lambda: cuda.device_buffer(4).free())
        cuda.copy_out(target, middle, 4, stream)

    cuda.capture(stream, work).launch(stream)
    stream.synchronize()
    assert list(target.array) == [1, 2, 3, 4]


def test_a_recording_inside_a_recording_is_refused(cuda: Cuda) -> None:
    first, second = cuda.stream(), cuda.stream()
    with pytest.raises(InputError, match="a recording inside a recording"):
        cuda.capture(first, lambda: cuda.capture(second, lambda: None) and None)
    cuda.capture(second, lambda: None).launch(second)


def test_closing_while_recording_ends_in_a_clear_error_and_leaves_nothing() -> None:
    cuda = open_cuda()
    with pytest.raises((InputError, DeviceError), match=r"after close|CAPTURE"):
        cuda.capture(cuda.stream(), lambda: (cuda.close(), cuda.stream())[0])
    assert still_open() == {}
