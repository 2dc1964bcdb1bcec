"""The interface's `Cuda`, the same for every binding."""

from __future__ import annotations

import weakref
from typing import Any, Callable, Tuple

import numpy as np
import numpy.typing as npt

from engines.cuda import interface
from engines.cuda.lifetime import Call, Context
from engines.cuda.objects import DeviceBuffer, Event, Graph, HostBuffer, Stream, own
from engines.cuda.operations import GRAPH, Operations
from engines.cuda.resource import Resource
from engines.cuda.status import StatusError
from engines.errors import DeviceError, InputError


class OpenCuda:
    """See interface.Cuda; made by `open_cuda`."""

    def __init__(self, operations: Operations, device: int) -> None:
        """Retain the primary context of the GPU that `operations` stands for."""
        self.binding = operations.binding
        self.device = device
        self.info = operations.info()
        self.supports_graphs = operations.supports_graphs
        self.context = Context(operations)
        weakref.finalize(self, self.context.abandon).atexit = False

    def current(self) -> Call:
        """See interface.Cuda."""
        return self.context.call()

    def free_bytes(self) -> Tuple[int, int]:
        """See interface.Cuda."""
        self.context.settle()
        with self.context.call():
            return self.context.operations.memory()

    def device_buffer(self, nbytes: int) -> DeviceBuffer:
        """See interface.Cuda."""
        size = _size(nbytes)
        self.context.settle()
        with self.context.call():
            return DeviceBuffer(self, self.context.operations.device_memory(size), size)

    def host_buffer(self, nbytes: int, *, mapped: bool = False) -> HostBuffer:
        """See interface.Cuda."""
        size = _size(nbytes)
        if mapped and not self.info.can_map_host:
            raise DeviceError(
                f"mapped memory on {self.info.name}",
                expected="a GPU that can map host memory",
                do="leave mapped out, and copy",
            )
        self.context.settle()
        with self.context.call():
            memory = self.context.operations.host_memory(size, mapped)
            return HostBuffer(self, memory, size)

    def stream(self) -> Stream:
        """See interface.Cuda."""
        self.context.settle()
        with self.context.call():
            return Stream(self, self.context.operations.new_stream())

    def event(self, *, timing: bool = True) -> Event:
        """See interface.Cuda."""
        self.context.settle()
        with self.context.call():
            return Event(self, self.context.operations.new_event(timing), timing)

    def copy_in(
        self,
        target: interface.DeviceBuffer,
        source: interface.HostBuffer,
        nbytes: int,
        stream: interface.Stream,
    ) -> None:
        """See interface.Cuda."""
        device, host, queue = (
            own(target, DeviceBuffer),
            own(source, HostBuffer),
            own(stream, Stream),
        )
        array = _part(host, device, nbytes)
        with self.context.call(device.resource, host.resource, queue.resource):
            self.context.operations.copy_in(device.resource.token, array, queue.resource.token)

    def copy_out(
        self,
        target: interface.HostBuffer,
        source: interface.DeviceBuffer,
        nbytes: int,
        stream: interface.Stream,
    ) -> None:
        """See interface.Cuda."""
        host, device, queue = (
            own(target, HostBuffer),
            own(source, DeviceBuffer),
            own(stream, Stream),
        )
        array = _part(host, device, nbytes)
        with self.context.call(device.resource, host.resource, queue.resource):
            self.context.operations.copy_out(array, device.resource.token, queue.resource.token)

    def capture(self, stream: interface.Stream, work: Callable[[], None]) -> Graph:
        """See interface.Cuda."""
        if not self.supports_graphs:
            raise DeviceError(
                f"a CUDA graph with {self.binding}",
                expected="a binding that can record graphs",
                do="pip install cuda-python, or set RICESEG_CUDA=driver, or run without a graph",
            )
        operations, queue = self.context.operations, own(stream, Stream).resource
        self.context.settle()
        with self.context.call(queue):
            self.context.begin_recording(queue)
            try:
                operations.begin_capture(queue.token)
                try:
                    work()
                except BaseException:
                    self._discard(queue)
                    raise
                token = operations.end_capture(queue.token)
            finally:
                works_on = self.context.end_recording(queue)
            return Graph(self, token, works_on)

    def _discard(self, queue: Resource) -> None:
        """End a recording whose work failed; that error is the one to show."""
        operations = self.context.operations
        try:
            operations.free(GRAPH, operations.end_capture(queue.token))
        except StatusError as error:
            self.context.note(error)

    def close(self) -> None:
        """See interface.Cuda."""
        self.context.close()

    def __enter__(self) -> OpenCuda:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _size(nbytes: int) -> int:
    if isinstance(nbytes, (int, np.integer)) and not isinstance(nbytes, bool) and nbytes >= 1:
        return int(nbytes)
    raise InputError(
        f"a buffer of {nbytes!r} bytes",
        expected="a whole number of 1 or more",
        do="ask for the size of what is stored in it",
    )


def _part(host: HostBuffer, device: DeviceBuffer, nbytes: int) -> npt.NDArray[np.uint8]:
    """The first bytes of the pinned memory; InputError unless both buffers hold so many."""
    smaller = min(host.nbytes, device.nbytes)
    if not 1 <= _size(nbytes) <= smaller:
        raise InputError(
            f"a copy of {nbytes} bytes between buffers of {host.nbytes} and {device.nbytes}",
            expected=f"1 to {smaller} bytes",
            do="make both buffers as large as what is copied",
        )
    return host.array[:nbytes]
