"""Promises about buffers, copies, streams and events; see harness.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.cuda import Cuda
from engines.errors import DeviceError, InputError
from tests.cuda_bindings.harness import buffers, cuda, nothing_left

__all__ = ["cuda", "nothing_left"]  # fixtures


def test_free_memory_shrinks_by_what_is_allocated(cuda: Cuda) -> None:
    buffer = cuda.device_buffer(1000)
    assert cuda.free_bytes() == (2**30 - 1000, 2**30)
    buffer.free()
    assert cuda.free_bytes() == (2**30, 2**30)


def test_a_copy_arrives_when_its_stream_is_synchronised_and_not_before(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)
    cuda.copy_in(middle, source, 4, stream)
    cuda.copy_out(target, middle, 4, stream)
    assert list(target.array) == [0, 0, 0, 0]
    stream.synchronize()
    assert list(target.array) == [1, 2, 3, 4]


def test_a_copy_takes_only_the_bytes_asked_for(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)
    cuda.copy_in(middle, source, 4, stream)
    cuda.copy_out(target, middle, 2, stream)
    stream.synchronize()
    assert list(target.array) == [1, 2, 0, 0]


def test_an_event_waits_for_what_was_enqueued_before_it_only(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)
    event = cuda.event()
    cuda.copy_in(middle, source, 4, stream)
    event.record(stream)
    cuda.copy_out(target, middle, 4, stream)
    event.synchronize()
    assert list(target.array) == [0, 0, 0, 0]
    stream.synchronize()


def test_elapsed_time_is_that_of_the_work_between_two_events(cuda: Cuda) -> None:
    source, middle, target, stream = buffers(cuda)
    start, end = cuda.event(), cuda.event()
    start.record(stream)
    cuda.copy_in(middle, source, 4, stream)
    cuda.copy_out(target, middle, 4, stream)
    end.record(stream)
    with pytest.raises(DeviceError, match=r"call synchronize\(\) on the event"):
        end.elapsed_ms(start)
    end.synchronize()
    assert end.elapsed_ms(start) == 2.0  # The stand-in takes one millisecond a copy.


def test_elapsed_time_needs_two_events_with_timing_that_were_recorded(cuda: Cuda) -> None:
    stream, timed, untimed = cuda.stream(), cuda.event(), cuda.event(timing=False)
    timed.record(stream)
    untimed.record(stream)
    stream.synchronize()
    with pytest.raises(InputError, match="timing=False"):
        timed.elapsed_ms(untimed)
    with pytest.raises(InputError, match="never recorded"):
        cuda.event().elapsed_ms(timed)


def test_a_stream_waits_for_another_streams_event(cuda: Cuda) -> None:
    source, middle, target, first = buffers(cuda)
    second, event = cuda.stream(), cuda.event(timing=False)
    cuda.copy_in(middle, source, 4, first)
    event.record(first)
    second.wait(event)
    cuda.copy_out(target, middle, 4, second)
    second.synchronize()
    assert list(target.array) == [1, 2, 3, 4]


def test_mapped_memory_has_a_device_address_and_other_memory_none(cuda: Cuda) -> None:
    mapped, plain = cuda.host_buffer(4, mapped=True), cuda.host_buffer(4)
    assert mapped.address == mapped.array.ctypes.data
    assert plain.address == 0


def test_the_array_is_all_bytes_writable_and_the_same_each_time(cuda: Cuda) -> None:
    buffer = cuda.host_buffer(5)
    assert (buffer.array.shape, buffer.array.dtype) == ((5,), np.uint8)
    assert buffer.array is buffer.array
    buffer.array[:] = 3
    assert buffer.array.reshape(5, 1).sum() == 15


@pytest.mark.parametrize("nbytes", [0, -1, 1.5, True, None])
def test_a_buffer_of_no_size_is_refused(cuda: Cuda, nbytes: Any) -> None:
    with pytest.raises(InputError, match="a whole number of 1 or more"):
        cuda.device_buffer(nbytes)
    with pytest.raises(InputError, match="a whole number of 1 or more"):
        cuda.host_buffer(nbytes)


def test_a_copy_beyond_either_buffer_is_refused(cuda: Cuda) -> None:
    host, device, stream = cuda.host_buffer(4), cuda.device_buffer(8), cuda.stream()
    with pytest.raises(InputError, match="5 bytes between buffers of 4 and 8"):
        cuda.copy_in(device, host, 5, stream)
    with pytest.raises(InputError, match="expected 1 to 4 bytes"):
        cuda.copy_out(host, device, 8, stream)
